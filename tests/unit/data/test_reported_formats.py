"""Kinds of annotations that people reported, each in variants: read whole, or refused in words that help."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.checks.config.sample_files import find_data
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import run_data_checks
from qwendet.errors import DataError
from tests.unit.data.test_quirks import BOX, CATEGORY, LINE, XML, Files, coco, converted, lay_out, yolo
from tests.unit.data.test_reported import VOC, YOLO, samples
from tests.unit.data.voc_files import voc_xml

# COCO


def coco_with(**changes: Any) -> str:
    content = json.loads(coco(["a.jpg"])) | changes
    return json.dumps({key: value for key, value in content.items() if value != "absent"})


ENTRY = {"id": 0, "image_id": 0, "category_id": 1, "bbox": BOX}
NO_LISTS: dict[str, tuple[dict[str, Any], str]] = {
    "annotations by id": ({"annotations": {"1": ENTRY}}, 'expected a list "annotations", got an object'),
    "annotations by image": ({"annotations": {"a.jpg": [ENTRY]}}, 'a list "annotations", got an object'),
    "annotations empty object": ({"annotations": {}}, 'expected a list "annotations", got an object'),
    "annotations null": ({"annotations": None}, 'expected a list "annotations", got null'),
    "annotations a text": ({"annotations": "annotations.csv"}, 'a list "annotations", got something else'),
    "annotations with a null": (
        {"annotations": [None]},
        "image_id: expected a number or a text, got the elem",
    ),
    "annotations in the images": (
        {"annotations": "absent", "images": [{"id": 0, "file_name": "a.jpg", "annotations": [ENTRY]}]},
        'expected a list "annotations" at the top of the file',
    ),
    "annotations below another key": (
        {"annotations": "absent", "data": {"annotations": [ENTRY]}},
        "at the top",
    ),
    "images by id": ({"images": {"0": {"file_name": "a.jpg"}}}, 'expected a list "images", got an object'),
    "images null": ({"images": None}, 'expected a list "images", got null'),
    "categories by id": ({"categories": {"1": "cell"}}, 'expected a list "categories", got an object'),
    "categories null": ({"categories": None}, 'expected a list "categories", got null'),
    "categories absent": ({"categories": "absent"}, "there is no category with the id 1"),
    "categories as texts": ({"categories": ["cell"]}, "id: expected a number or a text, got the element"),
}


@pytest.mark.parametrize("kind", NO_LISTS)
def test_coco__what_is_no_list_is_told(tmp_path: Path, kind: str) -> None:
    """Annotations by id, or null, became a data set of negatives."""
    changes, what = NO_LISTS[kind]
    folder = lay_out(tmp_path / "in", {"train.json": coco_with(**changes), "images/a.jpg": 1})
    with pytest.raises(DataError) as caught:
        converted(folder)
    assert what in caught.value.problems[0].what
    assert caught.value.problems[0].fix


CELL = [("cell", [1, 2, 31, 42])]
AS_TEXTS: dict[str, dict[str, Any]] = {
    "bbox": {"annotations": [ENTRY | {"bbox": ["1", "2.0", " 30", "4e1"]}]},
    "one number": {"annotations": [ENTRY | {"bbox": [1, 2, "30", 40]}]},
    "iscrowd": {"annotations": [ENTRY | {"iscrowd": "0"}]},
    "sizes": {"images": [{"id": 0, "file_name": "a.jpg", "width": "64", "height": "48"}]},
    "image id": {"images": [{"id": "0", "file_name": "a.jpg"}]},
    "image id of an annotation": {"annotations": [ENTRY | {"image_id": "0"}]},
    "category id": {"categories": [{"id": "1", "name": "cell"}]},
    "all ids": {"annotations": [ENTRY | {"image_id": "0", "category_id": "1", "id": "7"}]},
    "polygon": {"annotations": [ENTRY | {"bbox": None, "segmentation": [["1", "2", "31", "2", "31", "42"]]}]},
    "flat polygon": {"annotations": [ENTRY | {"bbox": [], "segmentation": [1, 2, 31, 2, 31, 42]}]},
    "nothing": {},
}


@pytest.mark.parametrize("kind", AS_TEXTS)
def test_coco__numbers_as_texts(tmp_path: Path, kind: str) -> None:
    folder = lay_out(tmp_path / "in", {"train.json": coco_with(**AS_TEXTS[kind]), "images/a.jpg": 1})
    assert samples(folder) == {"a.jpg": CELL}


@pytest.mark.parametrize(
    "bbox", [["1", "2", "3", "x"], ["1,5", "2", "3", "4"], ["nan", "1", "1", "1"], "[1, 2, 3, 4]"]
)
def test_coco__texts_that_are_no_numbers(tmp_path: Path, bbox: Any) -> None:
    text = coco_with(annotations=[ENTRY | {"bbox": bbox}])
    with pytest.raises(DataError, match=r"bbox: expected \[x, y, width, height\]"):
        converted(lay_out(tmp_path / "in", {"train.json": text, "images/a.jpg": 1}))


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("my%20photo.jpg", "my photo.jpg"), ("Stra%C3%9Fe.jpg", "Stra\xdfe.jpg"), ("100%25.jpg", "100%.jpg"),
        ("a%2Fb.jpg", "a/b.jpg"), ("a", "a.jpg"), ("a.b", "a.b.png"), ("a", "a.JPG"),
        ("my%20photo", "my photo.jpg"),         ("100%25.jpg", "100%25.jpg"), ("x/a", "x/a.jpeg"),
    ],
)  # fmt: skip
def test_coco__names_as_urls_or_without_ending(tmp_path: Path, named: str, file: str) -> None:
    """Every image of the set is named so: its folder must be found all the same."""
    folder = lay_out(tmp_path / "in", {"train.json": coco([named]), f"images/{file}": 1})
    assert samples(folder) == {file: CELL}
    assert samples(folder, image_dir=folder / "images", source="coco") == {file: CELL}


def test_coco__an_encoded_path_cannot_lead_out(tmp_path: Path) -> None:
    files = {"train.json": coco(["%2e%2e/%2e%2e/secret.jpg", "b.jpg"]), "images/b.jpg": 2}
    folder = lay_out(tmp_path / "in", files)
    lay_out(tmp_path, {"secret.jpg": 1})
    with pytest.raises(DataError, match=r"leaves the data set's folder"):
        converted(folder)


@pytest.mark.parametrize(("over", "is_cut"), [(0.5, True), (0.9, True), (3, False), (30, False)])
def test_box_over_the_edge__of_an_image_without_size(tmp_path: Path, over: float, is_cut: bool) -> None:
    """Up to 2 % of the image; more, and the boxes may be those of another size."""
    entry = ENTRY | {"bbox": [34, 2, 30 + over, 40]}
    text = coco_with(annotations=[entry], images=[{"id": 0, "file_name": "a.jpg"}])
    folder = lay_out(tmp_path / "in", {"train.json": text, "images/a.jpg": 1})
    if is_cut:
        assert samples(folder) == {"a.jpg": [("cell", [34, 2, 64, 42])]}
    else:
        with pytest.raises(DataError, match="leaves the image of 64×48"):
            converted(folder)


# VOC

CORNERS = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>31</xmax><ymax>42</ymax></bndbox>"
OBJECT = f"<object><name>cell</name>{CORNERS}</object>"
VOC_READ = {
    "one level down": f"<annotation><objects>{OBJECT}</objects></annotation>",
    "two levels down": f"<annotation><data><objects>{OBJECT}</objects></data></annotation>",
    "in capitals": "<annotation><Object><Name>cell</Name><BndBox><XMin>1</XMin><YMin>2</YMin><XMax>31</XMax>"
                   "<YMax>42</YMax></BndBox></Object></annotation>",
    "all in capitals": f"<annotation>{OBJECT}</annotation>".upper().replace("CELL", "cell"),
    "with a namespace": f'<annotation xmlns="http://x.y/z">{OBJECT}</annotation>',
    "with parts": f"<annotation><object><name>cell</name>{CORNERS}<part><name>head</name>{CORNERS}</part>"
                  "</object></annotation>",
    "with an owner": "<annotation><owner><name>me</name></owner><source><annotation>x</annotation></source>"
                     f"{OBJECT}</annotation>",
}  # fmt: skip
VOC_TOLD = {
    "item": f"<annotation><item><name>cell</name>{CORNERS}</item></annotation>",
    "items": f"<annotation><items><item><name>cell</name>{CORNERS}</item></items></annotation>",
    "box": f"<annotation><box><label>cell</label>{CORNERS}</box></annotation>",
    "corners alone": "<annotation><thing><xmin>1</xmin><ymin>2</ymin></thing></annotation>",
    "attributes": '<annotation><thing name="cell" xmin="1" ymin="2" xmax="3" ymax="4"/></annotation>',
    "object with attributes": '<annotation><object name="cell" xmin="1" ymin="2"/></annotation>',
    "FAIR1M": "<annotation><objects><object><possibleresult><name>Ship</name></possibleresult><points>"
              "<point>1,2</point></points></object></objects></annotation>",
    "turned box": "<annotation><object><name>x</name><robndbox><cx>1</cx></robndbox></object></annotation>",
    "polygon": "<annotation><shape><polygon><pt><x>1</x></pt></polygon></shape></annotation>",
    "region": "<annotation><region><category>cell</category><rect><x>1</x></rect></region></annotation>",
    "target with x1": "<annotation><targets><target><x1>1</x1></target></targets></annotation>",
    "HRSC": "<annotation><HRSC_Objects><HRSC_Object><box_xmin>1</box_xmin></HRSC_Object></HRSC_Objects>"
            "</annotation>",
    "bounding_box": "<annotation><thing><bounding_box><left>1</left></bounding_box></thing></annotation>",
    "coordinates": "<annotation><defect><coordinates>1,2,31,42</coordinates></defect></annotation>",
    "two boxes in one object": f"<annotation><object><name>x</name>{CORNERS}{CORNERS}</object></annotation>",
    "beside objects": f"<annotation>{OBJECT}<item><name>cell</name>{CORNERS}</item></annotation>",
}  # fmt: skip


@pytest.mark.parametrize("kind", VOC_READ)
def test_voc__objects_wherever_they_stand(tmp_path: Path, kind: str) -> None:
    folder = lay_out(tmp_path / "in", VOC | {"Annotations/a.xml": VOC_READ[kind]})
    assert samples(folder) == {"a.jpg": CELL}


@pytest.mark.parametrize("kind", VOC_TOLD)
def test_voc__objects_of_another_name_are_told(tmp_path: Path, kind: str) -> None:
    """They became negatives, also with ``--strict``."""
    folder = lay_out(tmp_path / "in", VOC | {"Annotations/a.xml": VOC_TOLD[kind]})
    with pytest.raises(
        DataError, match=r"expected <object> with|expected <name> and <bndbox>|expected <bndbox>"
    ):
        converted(folder)


@pytest.mark.parametrize(
    "xml", ["<annotation/>", voc_xml(), "<annotation><objects/><source><name>x</name></source></annotation>"]
)
def test_voc__negatives_stay_negatives(tmp_path: Path, xml: str) -> None:
    assert samples(lay_out(tmp_path / "in", VOC | {"Annotations/a.xml": xml}), is_strict=True) == {
        "a.jpg": []
    }


# Annotations named after the whole image


@pytest.mark.parametrize(
    "files",
    [
        {"Annotations/a.jpg.xml": XML, "JPEGImages/a.jpg": 1},
        VOC | {"Annotations/b.jpg.xml": XML, "JPEGImages/b.jpg": 2},
        {"Annotations/x/a.jpg.xml": XML, "JPEGImages/x/a.jpg": 1},
        {"Annotations/a.png.xml": XML, "Annotations/a.jpg.xml": XML, "images/a.jpg": 1, "images/a.png": 2},
        {"train/a.jpg": 1, "train/a.jpg.xml": XML},
        yolo(**{"images/train/a.jpg": 1, "labels/train/a.jpg.txt": LINE}),
        yolo(**{"images/train/a.b.jpg": 1, "labels/train/a.b.jpg.txt": LINE}),
        yolo(**{"images/train/a.jpg": 1, "images/train/a.jpg.txt": LINE}),
        yolo(**{f"images/train/a.{end}": at for at, end in enumerate(("jpg", "png"))}
             | {f"labels/train/a.{end}.txt": LINE for end in ("jpg", "png")}),
    ],
)  # fmt: skip
def test_annotations_named_after_the_whole_image(tmp_path: Path, files: Files) -> None:
    found = samples(lay_out(tmp_path / "in", files))
    assert len(found) == sum(isinstance(content, int) for content in files.values())
    assert all(len(boxes) == 1 for boxes in found.values())


# YOLO's settings


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ("names: x.names\nnc: 1\n", {"x.names": "cell\n"}),
        ("names: data/x.names\n", {"x.names": "cell\n\n"}),
        ("names: /content/yolov7/data/x.txt\n", {"data/x.txt": "cell\n"}),
        ("names: [cell]\nnc: '1'\n", {}),
        ("names: {'0': cell}\nnc: 1\n", {}),
    ],
)
def test_yolo__settings_as_people_write_them(tmp_path: Path, settings: str, more: Files) -> None:
    files = YOLO | {"data.yaml": f"train: images/train\nval: images/train\n{settings}"} | more
    assert samples(lay_out(tmp_path / "in", files)) == {"a.jpg": [("cell", [25.6, 19.2, 38.4, 28.8])]}


# One picture under two names


def drawn(colour: tuple[int, int, int]) -> Callable[[Path, Path], object]:
    return lambda a, b: Image.new("RGB", (64, 48), colour).save(b)


SAME: dict[str, tuple[Callable[[Path, Path], object], list[int], bool]] = {
    "copy, other box": (shutil.copy, [5, 5, 9, 9], True),
    "copy, no box": (shutil.copy, [], True),
    "copy, same box": (shutil.copy, BOX, False),
    "hard link, other box": (lambda a, b: b.hardlink_to(a), [5, 5, 9, 9], True),
    "soft link, other box": (lambda a, b: b.symlink_to(a), [5, 5, 9, 9], True),
    "another picture": (drawn((9, 9, 9)), [5, 5, 9, 9], False),
    "another picture in a file as long": (drawn((2, 0, 0)), [5, 5, 9, 9], False),
}


@pytest.mark.parametrize("kind", SAME)
def test_one_picture_under_two_names(tmp_path: Path, kind: str) -> None:
    place, bbox, is_told = SAME[kind]
    images = [{"id": at, "file_name": f"{name}.jpg"} for at, name in enumerate("ab")]
    annotations = [ENTRY] + ([ENTRY | {"id": 1, "image_id": 1, "bbox": bbox}] if bbox else [])
    text = json.dumps({"images": images, "annotations": annotations, "categories": [CATEGORY]})
    folder = lay_out(tmp_path / "in", {"train.json": text, "images/a.jpg": 1})
    place(folder / "images" / "a.jpg", folder / "images" / "b.jpg")
    results, _ = run_data_checks(find_data([folder]), None, Thoroughness("header", workers=1))
    told = [
        result.what
        for result in results
        if result.id == "config.data.contradiction" and result.status == "fail"
    ]
    assert len(told) == is_told
    assert all(
        "'images/b.jpg', the same as 'images/a.jpg', is asked about with other" in what for what in told
    )
