"""CVAT's XML for images, and the mistakes that its users make."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.tool_files import Boxed, approx, cvat_box, cvat_image, cvat_xml, read_one, refusal

BOX = cvat_box(Boxed("bolt", (1, 2, 30, 40)))
IMAGE = {"images/a.jpg": 1}


def test_images_boxes_and_splits(tmp_path: Path) -> None:
    xml = cvat_xml(
        cvat_image(BOX, more='subset="Train"'), cvat_image(name="b.jpg", more='subset="Validation"')
    )
    found = read_one(
        tmp_path, {"annotations.xml": xml, "images/Train/a.jpg": 1, "images/Validation/b.jpg": 2}
    )
    assert found.boxes == {"images/Train/a.jpg": [("bolt", (1, 2, 30, 40))], "images/Validation/b.jpg": []}
    assert found.splits == {"images/Train/a.jpg": "train", "images/Validation/b.jpg": "val"}
    assert not found.findings


@pytest.mark.parametrize(
    ("shape", "box", "note"),
    [
        (cvat_box(Boxed("bolt", (20, 10, 40, 20)), 'rotation="90"'), (25, 5, 35, 25), "(rotated box)"),
        (cvat_box(Boxed("bolt", (20, 10, 40, 20)), 'rotation="360"'), (20, 10, 40, 20), ""),
        ('<polygon label="bolt" points="1.5,2;30,4;20,40.25"/>', (1.5, 2, 30, 40.25), "(polygon)"),
        (
            '<ellipse label="bolt" cx="20" cy="20" rx="10" ry="5" rotation="90"/>',
            (15, 10, 25, 30),
            "(ellipse)",
        ),
        (
            '<mask label="bolt" rle="4,190,6" left="3" top="4" width="10" height="20"/>',
            (3, 4, 13, 24),
            "(mask)",
        ),
    ],
)
def test_shapes__give_their_extent_and_are_told(
    tmp_path: Path, shape: str, box: tuple[float, ...], note: str
) -> None:
    found = read_one(tmp_path, {"annotations.xml": cvat_xml(cvat_image(shape)), **IMAGE})
    assert found.boxes == {"images/a.jpg": [("bolt", approx(*box))]}
    assert [note in told for told in found.findings.get("derived", [])] == ([True] if note else [])


@pytest.mark.parametrize(
    ("shape", "note"),
    [
        ('<points label="bolt" points="1,2"/>', "points"),
        ('<polyline label="bolt" points="1,2;3,4"/>', "polyline"),
        ('<tag label="bolt"/>', "tag"),
        (cvat_box(Boxed("bolt", (1, 2, 3, 4)), 'outside="1"'), "box that is marked as outside of the image"),
    ],
)
def test_what_is_no_box__is_left_out_and_told(tmp_path: Path, shape: str, note: str) -> None:
    found = read_one(tmp_path, {"annotations.xml": cvat_xml(cvat_image(BOX + shape)), **IMAGE})
    assert [label for label, _ in found.boxes["images/a.jpg"]] == ["bolt"]
    (told,) = found.findings["no_extent"]
    assert told.endswith(note)


@pytest.mark.parametrize(
    ("xml", "what"),
    [
        (
            cvat_xml('<track id="3" label="bolt"><box frame="0"/></track>'),
            "track 3: this is a track of a video",
        ),
        (cvat_xml(cvat_image('<box label="bolt" xtl="1" ytl="2" xbr="?" ybr="4"/>')), "a number, got '?'"),
        (cvat_xml(cvat_image('<box label="bolt" xtl="1" ytl="2" xbr="nan" ybr="4"/>')), "box 1: xbr: "),
        (cvat_xml(cvat_image('<box label="bolt" xtl="1" ytl="2" xbr="3"/>')), "box 1: ybr: expected"),
        (cvat_xml(cvat_image('<polygon label="bolt" points=""/>')), "polygon 1: 0"),
        (
            cvat_xml(cvat_image('<box xtl="1" ytl="2" xbr="3" ybr="4"/>')),
            "label: expected a label text, got None",
        ),
        (cvat_xml(cvat_image(BOX, name="b.jpg")), "the image 'b.jpg' is absent"),
        (cvat_xml(cvat_image(BOX, name="/etc/passwd")), "the image path '/etc/passwd' is absolute"),
        (cvat_xml(cvat_image(BOX, name="../../x.jpg")), "leaves the data set's folder"),
        (cvat_xml(cvat_image(cvat_box(Boxed("bolt", (1, 2, 300, 40))))), "leaves the image of 64×48 by 236"),
        (cvat_xml(cvat_image(BOX))[:-30], "expected CVAT's XML, got a broken file"),
        ('<!DOCTYPE a [<!ENTITY x "y">]>' + cvat_xml(cvat_image(BOX)), "the XML declares entities"),
    ],
)
def test_mistakes__are_told_with_their_place(tmp_path: Path, xml: str, what: str) -> None:
    assert what in refusal(tmp_path, {"annotations.xml": xml, **IMAGE})


def test_size_of_another_image__is_told(tmp_path: Path) -> None:
    found = read_one(tmp_path, {"annotations.xml": cvat_xml(cvat_image(BOX, size=(640, 480))), **IMAGE})
    assert [
        note.endswith("the size is 640×480, used 64×48 of 'images/a.jpg'")
        for note in found.findings["resized"]
    ]


def test_image_in_no_subset__among_others_is_refused(tmp_path: Path) -> None:
    xml = cvat_xml(cvat_image(BOX, more='subset="Train"'), cvat_image(name="b.jpg"))
    what = refusal(tmp_path, {"annotations.xml": xml, **IMAGE, "images/b.jpg": 2})
    assert "some images are of a split (train) and others of none" in what


def test_images__are_found_by_folders_in_common(tmp_path: Path) -> None:
    xml = cvat_xml(cvat_image(BOX, name="day/a.jpg"), cvat_image(name="night/a.jpg"))
    found = read_one(tmp_path, {"annotations.xml": xml, "images/day/a.jpg": 1, "images/night/a.jpg": 2})
    assert {image: len(boxes) for image, boxes in found.boxes.items()} == {
        "images/day/a.jpg": 1,
        "images/night/a.jpg": 0,
    }


def test_two_names_for_one_image__are_refused(tmp_path: Path) -> None:
    xml = cvat_xml(cvat_image(BOX, name="day/a.jpg"), cvat_image(name="night/a.jpg"))
    assert "would both be the image 'images/a.jpg'" in refusal(tmp_path, {"annotations.xml": xml, **IMAGE})


def test_images_without_annotation__are_told(tmp_path: Path) -> None:
    found = read_one(tmp_path, {"annotations.xml": cvat_xml(cvat_image(BOX)), **IMAGE, "images/b.jpg": 2})
    assert found.findings == {"no_annotation": [str(tmp_path / "images/b.jpg")]}


def test_absent_images__with_reference(tmp_path: Path) -> None:
    found = read_one(tmp_path, {"annotations.xml": cvat_xml(cvat_image(BOX))}, may_be_absent=True)
    assert (found.boxes, list(found.findings)) == ({"a.jpg": [("bolt", (1, 2, 30, 40))]}, ["absent"])


def test_folder_named_as_that_of_voc__is_recognised(tmp_path: Path) -> None:
    found = read_one(tmp_path, {"annotations/train.xml": cvat_xml(cvat_image(BOX)), **IMAGE})
    assert (found.boxes, found.splits) == (
        {"images/a.jpg": [("bolt", (1, 2, 30, 40))]},
        {"images/a.jpg": "train"},
    )
