"""VOC: what is read, what is repaired and said, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from qwendet.data.formats.detect import detect_format, open_source
from qwendet.data.formats.records import Finding, Record
from qwendet.data.formats.voc_layout import find_voc
from qwendet.errors import DataError
from tests.unit.data.voc_files import (
    BILLION_LAUGHS,
    EXTERNAL_ENTITY,
    HEIGHT,
    WIDTH,
    Box,
    Voc,
    convert_voc,
    read_error,
    read_voc,
    splits_of,
    voc_object,
    voc_xml,
)


def test_find_voc__folder_or_its_only_child(voc: Voc) -> None:
    voc.add("a")
    (voc.folder.parent / "other").mkdir()
    assert find_voc(voc.folder)[0] == find_voc(voc.folder.parent)[0] == voc.folder


def test_find_voc__two_children(tmp_path: Path) -> None:
    for name in ("VOC2007", "VOC2012"):
        Voc(tmp_path / name).add("a")
    with pytest.raises(DataError, match=r"expected one VOC folder, got 2: VOC2007, VOC2012 \(give one of"):
        find_voc(tmp_path)


def test_find_voc__none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="got no annotations"):
            find_voc(path)


def test_read_voc__splits__lists_with_flags_blanks_and_blank_lines(voc: Voc) -> None:
    for stem in ("a", "b", "c", "two words", "odd 1"):
        voc.add(stem)
    voc.split("train", "b  1", "", "two words -1", "odd 1")
    voc.split("val", "a")
    voc.split("test", "c  0")
    assert splits_of(voc.folder) == {"train": ["b", "two words", "odd 1"], "val": ["a"], "test": ["c"]}


def test_read_voc__splits__trainval__ignored_beside_train(voc: Voc) -> None:
    for stem in "abc":
        voc.add(stem)
    voc.split("train", "a")
    voc.split("val", "b")
    voc.split("trainval", "a", "b", "c")
    assert splits_of(voc.folder) == {"train": ["a"], "val": ["b"]}


def test_read_voc__splits__trainval__without_train_leaves_out_val(voc: Voc) -> None:
    for stem in "abc":
        voc.add(stem)
    voc.split("trainval", "a", "b", "c")
    voc.split("val", "b")
    assert splits_of(voc.folder) == {"train": ["a", "c"], "val": ["b"]}


def test_read_voc__splits__no_lists(voc: Voc) -> None:
    voc.add("b")
    voc.add("a")
    (voc.folder / "Annotations" / "._a.xml").write_bytes(b"\0macOS")
    assert splits_of(voc.folder) == {"all": ["a", "b"]}


@pytest.mark.parametrize("name", ["missing", "../Annotations/a", "/etc/passwd"])
def test_read_voc__splits__unknown_name(voc: Voc, name: str) -> None:
    voc.add("a")
    voc.split("train", "a", name)
    message = str(read_error(voc.folder))
    assert message.startswith(f"{voc.folder / 'ImageSets' / 'Main' / 'train.txt'}:2: {name!r} has no Annot")


def test_read_voc__splits__listed_twice(voc: Voc) -> None:
    voc.add("a")
    voc.split("train", "a", "a 1")
    found = [item for item in open_source(voc.folder, "voc").items if isinstance(item, Finding)]
    where = str(voc.folder / "ImageSets" / "Main" / "train.txt")
    assert found == [Finding("listed_again", f"{where}:2", "'a', as in line 1")]
    assert splits_of(voc.folder) == {"train": ["a"]}


def test_read_voc__splits__trainval_beside_train_is_not_read(voc: Voc) -> None:
    voc.add("a")
    voc.split("train", "a")
    voc.split("trainval", "a", "gone")
    assert [item for item in open_source(voc.folder, "voc").items if not isinstance(item, Record)] == []


def test_read_voc__splits__empty_list(voc: Voc) -> None:
    voc.add("a")
    voc.split("test", "")
    found = [item for item in open_source(voc.folder, "voc").items if isinstance(item, Finding)]
    lists = voc.folder / "ImageSets" / "Main"
    assert found == [Finding("no_split", str(lists / "test.txt"), "the split list is empty")]
    assert splits_of(voc.folder) == {"all": ["a"]}


def test_read_voc__record(voc: Voc) -> None:
    path = voc.add(
        "a",
        voc_object((1, 2, 30.5, 40), extra="<difficult>1</difficult>"),
        voc_object((0, 0, WIDTH, HEIGHT), name="Ей &lt;&gt;"),
    )
    (record,) = read_voc(voc.folder)
    turn = record.turn
    assert (record.split, record.where, record.findings) == ("all", str(path), ())
    assert (turn.image, turn.width, turn.height) == ("JPEGImages/a.jpg", WIDTH, HEIGHT)
    assert [(found.bbox_2d, found.desc, found.difficult) for found in turn.objects] == [
        ((1, 2, 30.5, 40), "cell", True),  # as they stand: no minus one
        ((0, 0, WIDTH, HEIGHT), "Ей <>", False),
    ]


def test_read_voc__negative(voc: Voc) -> None:
    voc.add("a")
    (record,) = read_voc(voc.folder)
    assert record.turn.objects == ()


def test_read_voc__parts_are_left(voc: Voc) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    voc.add("a", voc_object((1, 2, 3, 4), extra=part))
    (record,) = read_voc(voc.folder)
    assert [found.desc for found in record.turn.objects] == ["cell"]


def test_read_voc__own_name_wins_over_filename(voc: Voc) -> None:
    voc.add("b")
    path = voc.add("a", xml=voc_xml(filename="b.jpg"))
    record = next(iter(read_voc(voc.folder)))
    assert record.turn.image == "JPEGImages/a.jpg"
    assert [(finding.kind, finding.note) for finding in record.findings] == [
        ("renamed", f"{path}: <filename> is 'b.jpg', used 'a.jpg'")
    ]


def test_read_voc__two_images_of_one_name(voc: Voc) -> None:
    voc.add("a", suffix=".png")
    voc.add("a", xml=voc_xml(filename="a.png"))
    (voc.folder / "JPEGImages" / "a.txt").touch()
    (record,) = read_voc(voc.folder)
    assert record.turn.image == "JPEGImages/a.png"
    voc.add("a")
    assert "expected one image JPEGImages/a.*, got a.jpg, a.png" in str(read_error(voc.folder))


def test_read_voc__no_image(voc: Voc) -> None:
    path = voc.add("a", xml=voc_xml(filename="b.jpg"))
    (voc.folder / "JPEGImages" / "a.jpg").unlink()
    message = str(read_error(voc.folder))
    assert message.startswith(
        f"{path}: expected one image JPEGImages/a.*, got none (<filename> says 'b.jpg')"
    )


def test_read_voc__no_image_folder(voc: Voc) -> None:
    voc.add("a")
    shutil.rmtree(voc.folder / "JPEGImages")
    assert "expected JPEGImages beside Annotations" in str(read_error(voc.folder))


def test_read_voc__broken_image(voc: Voc) -> None:
    path = voc.add("a")
    (voc.folder / "JPEGImages" / "a.jpg").write_text("no", encoding="utf-8")
    assert str(read_error(voc.folder)).startswith(f"{path}: 'JPEGImages/a.jpg' is not an image")


def test_read_voc__size_differs__real_one_counts(voc: Voc) -> None:
    voc.add("a", xml=voc_xml(size=(0, 0)))
    (record,) = read_voc(voc.folder)
    assert (record.turn.width, record.turn.height) == (WIDTH, HEIGHT)
    assert record.findings[0].kind == "resized"
    assert "<size> is 0×0, used 64×48 of 'JPEGImages/a.jpg'" in record.findings[0].note


def test_read_voc__size_before_exif_orientation(voc: Voc) -> None:
    """Boxes drawn on the unturned image would train without any error, on the wrong places."""
    voc.add("a", xml=voc_xml(size=(WIDTH, HEIGHT)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(voc.folder / "JPEGImages" / "a.jpg", exif=exif)
    message = str(read_error(voc.folder))
    assert "<size> is 64×48, that of 'JPEGImages/a.jpg' before its EXIF orientation is applied" in message


@pytest.mark.parametrize("box", [(5, 5, 5, 20), (5, 5, 20, 5), (5, 5, 5, 5), (WIDTH, 5, WIDTH + 1, 9)])
def test_read_voc__zero_area(voc: Voc, box: Box) -> None:
    path = voc.add("a", voc_object(box), voc_object((1, 2, 3, 4)))
    (record,) = read_voc(voc.folder)
    assert [found.bbox_2d for found in record.turn.objects] == [(1, 2, 3, 4)]
    (finding,) = record.findings
    assert finding.kind == "zero_area"
    assert finding.note.startswith(f"{path}: object 1 (cell): [")


def test_read_voc__clipped_by_one_pixel(voc: Voc) -> None:
    voc.add("a", voc_object((-1, -0.5, WIDTH + 1, HEIGHT)))
    (record,) = read_voc(voc.folder)
    assert record.turn.objects[0].bbox_2d == (0, 0, WIDTH, HEIGHT)
    assert [finding.kind for finding in record.findings] == ["clipped"]
    assert "object 1 (cell): [-1, -0.5, 65, 48] cut to [0, 0, 64, 48]" in record.findings[0].note


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (voc_object((70, 0, 90, 9)), "the box [70, 0, 90, 9] leaves the image of 64×48 by 26 pixels"),
        (voc_object((9, 0, 1, 9)), "(cell): expected xmin ≤ xmax and ymin ≤ ymax, got [9, 0, 1, 9]"),
        (voc_object(("nan", 0, 1, 9)), "(cell): <bndbox>: xmin: expected a finite number, got 'nan'"),
        (voc_object(("", 0, 1, 9)), "(cell): <bndbox>: xmin: expected a valid number, got None"),
        (voc_object((0, 0, 1, 9), name=" "), ": <name>: expected a label text, got ''"),
        (voc_object((0, 0, 1, 9), name="&lt;|im_end|>"), "the label '<|im_end|>' holds special-token"),
        (voc_object((0, 0, 1, 9), extra="<difficult>?</difficult>"), "<difficult>: expected 0 or 1"),
        ("<object><name>cell</name></object>", "(cell): expected <bndbox>, got none"),
    ],
)
def test_read_voc__broken_object(voc: Voc, objects: str, message: str) -> None:
    path = voc.add("a", voc_object((1, 2, 3, 4)), objects)
    error = str(read_error(voc.folder))
    assert error.startswith(f"{path}: object 2")
    assert message in error


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (BILLION_LAUGHS, "the XML declares entities, which can read other files or fill the memory"),
        (EXTERNAL_ENTITY, "the XML declares entities"),
        ("<annotation><object>", "expected an XML annotation, got a broken file (no element found"),
        ('<?xml version="1.0" encoding="martian"?><annotation/>', "got a broken file (unknown encoding"),
        ("<html/>", "expected the XML element <annotation>, got <html>"),
    ],
)
def test_read_voc__broken_xml(voc: Voc, xml: str, message: str) -> None:
    path = voc.add("a", xml=xml)
    error = str(read_error(voc.folder))
    assert error.startswith(f"{path}: ")
    assert message in error
    assert "root:" not in error


def test_read_voc__all_broken_annotations_are_named(voc: Voc) -> None:
    for stem in "abc":
        voc.add(stem, *([] if stem == "b" else [voc_object((0, 0, 999, 9))]))
    error = read_error(voc.folder)
    assert [Path(problem.where.split(": ")[0]).name for problem in error.problems] == ["a.xml", "c.xml"]


def test_read_voc__gives_up_after_twenty(voc: Voc) -> None:
    for number in range(25):
        voc.add(f"{number:02}", xml="broken")
    with pytest.raises(DataError) as error:
        convert_voc(voc.folder, voc.folder.parent / "data")
    assert len(error.value.problems) == 20


@given(junk=st.text(max_size=60), number=st.text("0123456789.-+einfa_ ", max_size=6))
def test_read_voc__only_data_errors(tmp_path_factory: pytest.TempPathFactory, junk: str, number: str) -> None:
    voc = Voc(tmp_path_factory.mktemp("junk") / "voc")
    voc.add("a", voc_object((number, 0, 40, 40), name=junk))
    for record in read_voc(voc.folder):
        assert all(0 <= found.bbox_2d[0] < 40 for found in record.turn.objects)


# Layouts


def places(folder: Path) -> list[tuple[str, str, str]]:
    return [(record.split, record.turn.image, record.name) for record in read_voc(folder)]


def flat(folder: Path, *stems: str) -> Path:
    """XML beside the images."""
    folder.mkdir(parents=True)
    for stem in stems:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{stem}.jpg")
        (folder / f"{stem}.XML").write_text(voc_xml(), encoding="utf-8")
    return folder


def test_layout__beside_the_images(tmp_path: Path) -> None:
    assert places(flat(tmp_path / "data", "a", "b")) == [("all", "a.jpg", "a.jpg"), ("all", "b.jpg", "b.jpg")]
    assert detect_format(tmp_path / "data") == "voc"


def test_layout__a_folder_a_split(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        flat(tmp_path / name, "a")
    assert places(tmp_path) == [("train", "train/a.jpg", "a.jpg"), ("val", "valid/a.jpg", "a.jpg")]


def test_layout__lower_case_and_images(voc: Voc) -> None:
    voc.add("a")
    (voc.folder / "Annotations").rename(voc.folder / "annotations")
    (voc.folder / "JPEGImages").rename(voc.folder / "images")
    assert places(voc.folder) == [("all", "images/a.jpg", "a.jpg")]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("annots", "images"), ("xmls", "photos"), ("Annotation", "Image"), ("labels", "."),
     ("annotations", "annotations"), ("annotations/xmls", "images"), ("annotations", "images/images"),
     ("annotations/annotations", "images/images")],
)  # fmt: skip
def test_layout__folders_as_people_name_them(tmp_path: Path, annotations: str, images: str) -> None:
    for folder in (annotations, images):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / annotations / "a.xml").write_text(voc_xml(), encoding="utf-8")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / images / "a.jpg")
    assert detect_format(tmp_path) == "voc"
    items = list(open_source(tmp_path, "voc").items)
    assert [item.turn.image for item in items if isinstance(item, Record)] == [
        f"{images}/a.jpg".removeprefix("./")
    ]
    assert len(items) == 1


def test_layout__images_elsewhere(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    (voc.folder / "JPEGImages").rename(tmp_path / "photos")
    (record,) = read_voc(voc.folder, tmp_path / "photos")
    assert record.turn.image == "a.jpg"


def test_layout__images_not_there_but_not_needed(voc: Voc) -> None:
    voc.add("a", xml=voc_xml(filename="other.png"))
    shutil.rmtree(voc.folder / "JPEGImages")
    (record,) = read_voc(voc.folder, may_be_absent=True)
    assert record.turn.image == "JPEGImages/a.png"
    assert [finding.kind for finding in record.findings] == ["renamed", "absent"]


def test_crowd__is_read_as_it_is_written(voc: Voc) -> None:
    voc.add("a", voc_object((1, 2, 3, 4), extra="<crowd>1</crowd>"))
    (record,) = read_voc(voc.folder)
    assert record.turn.objects[0].crowd


@pytest.mark.parametrize(("text", "flag"), [("", False), ("True", True), ("Unspecified", False), ("1", True)])
def test_difficult__as_tools_write_it(voc: Voc, text: str, flag: bool) -> None:
    voc.add("a", voc_object((1, 2, 3, 4), extra=f"<difficult>{text}</difficult>"))
    (record,) = read_voc(voc.folder)
    assert record.turn.objects[0].difficult == flag


def test_size__left_empty(voc: Voc) -> None:
    voc.add("a", xml="<annotation><size><width/><height/></size></annotation>")
    (record,) = read_voc(voc.folder)
    assert (record.turn.declared_size, record.findings) == ((WIDTH, HEIGHT), ())


def test_image_without_annotation__is_told(voc: Voc) -> None:
    voc.add("a")
    extra = voc.folder / "JPEGImages" / "extra.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(extra)
    found = [item for item in open_source(voc.folder, "voc").items if not isinstance(item, Record)]
    assert found == [Finding("no_annotation", str(extra))]
