"""Data sets as tools and people really leave them: read whole, or told what is left and why."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.checks.config.sample_files import find_data
from qwendet.data.formats.convert import Conversion, ConversionReport, convert_dataset
from qwendet.data.formats.detect import detect_format
from qwendet.errors import DataError
from tests.unit.data.voc_files import voc_object, voc_xml

BOX = [1, 2, 30, 40]
LINE = "0 0.5 0.5 0.2 0.2\n"
XML = voc_xml([voc_object((1, 2, 31, 42))])
CATEGORY = {"id": 1, "name": "cell"}
Files = dict[str, Any]


def coco(
    names: Iterable[str], *, boxes: bool = True, image_id: object = None, category: Any = CATEGORY
) -> str:
    """A COCO file; each image has one box."""
    names = list(names)
    images = [
        {"id": image_id or at, "file_name": name, "width": 64, "height": 48} for at, name in enumerate(names)
    ]
    found = [
        {"id": at, "image_id": at, "category_id": 1, "bbox": BOX, "iscrowd": 0} for at in range(len(names))
    ]
    return json.dumps({"images": images, "annotations": found if boxes else [], "categories": [category]})


def lay_out(folder: Path, files: Files) -> Path:
    """Write files; a colour makes an image."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            Image.new("RGB", (64, 48), (content, 0, 0)).save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def converted(folder: Path, **how: Any) -> ConversionReport:
    return convert_dataset(folder, folder.parent / "out", Conversion(**how))


def yolo(names: str = "[cell]", **files: Any) -> Files:
    return {"data.yaml": f"train: images/train\nval: images/train\nnames: {names}\n"} | files


READ: dict[str, tuple[Files, dict[str, int], dict[str, int]]] = {
    "coco, a split without images": (
        {"train/a.coco.json": coco(["a.jpg"]), "train/a.jpg": 1, "test/a.coco.json": coco([])},
        {"train": 1}, {"no_split": 1},
    ),
    "coco, files of other tasks": (
        {f"annotations/{kind}_train2017.json": coco(["a.jpg"]) for kind in ("instances", "captions", "stuff")}
        | {"train2017/a.jpg": 1},
        {"train": 1}, {"other_task": 2},
    ),
    "coco, images that no entry names": (
        {"c.json": coco(["a.jpg"]), "images/a.jpg": 1, "images/b.png": 2}, {"all": 1}, {"no_annotation": 1},
    ),
    "coco, one image in two entries": (
        {"c.json": coco(["a.jpg", "a.jpg"]), "images/a.jpg": 1}, {"all": 2}, {"same_image": 1},
    ),
    "coco, images in a folder of any name": (
        {"labels.json": coco(["a.jpg"]), "data/a.jpg": 1}, {"all": 1}, {},
    ),
    "coco, category ids of two types": (
        {"c.json": coco(["a.jpg"], category={"id": "1", "name": "cell"}), "images/a.jpg": 1}, {"all": 1}, {},
    ),
    "coco, image ids of two types": (
        {"c.json": coco(["a.jpg"], image_id="0"), "images/a.jpg": 1}, {"all": 1}, {},
    ),
    "coco, an XML of something else beside it": (
        {"pom.xml": "<project/>", "c.json": coco(["a.jpg"]), "images/a.jpg": 1}, {"all": 1}, {},
    ),
    "voc, folders of splits below Annotations": (
        {f"{top}/{split}/a.{end}": what for split in ("train", "val")
         for top, end, what in (("Annotations", "xml", XML), ("JPEGImages", "jpg", 1))},
        {"train": 1, "val": 1}, {},
    ),
    "voc, folders below Annotations beside files": (
        {"Annotations/a.xml": XML, "JPEGImages/a.jpg": 1, "Annotations/x/b.xml": XML,
         "JPEGImages/x/b.jpg": 2},
        {"all": 2}, {},
    ),
    "voc, a folder of its own a split": (
        {f"{split}/{top}/{split}.{end}": what for split in ("train", "test")
         for top, end, what in (("annotations", "xml", XML), ("images", "jpg", 1))},
        {"test": 1, "train": 1}, {},
    ),
    "voc, lists of single classes": (
        {"ImageSets/Main/cell_train.txt": "a  1\n", "ImageSets/Main/dog_train.txt": "a -1\n",
         "ImageSets/Main/cell_val.txt": "b  1\n"} | {f"Annotations/{n}.xml": XML for n in "ab"}
        | {"JPEGImages/a.jpg": 1, "JPEGImages/b.jpg": 2},
        {"train": 1, "val": 1}, {},
    ),
    "voc, lists of file names, not in Main": (
        {"ImageSets/train.txt": "a.jpg\r\n", "ImageSets/val.txt": "JPEGImages/b.jpg\n"}
        | {f"Annotations/{n}.xml": XML for n in "ab"} | {"JPEGImages/a.jpg": 1, "JPEGImages/b.jpg": 2},
        {"train": 1, "val": 1}, {},
    ),
    "voc, <filename> without an ending": (
        {"Annotations/a.xml": voc_xml(filename="a"), "images/a.jpg": 1}, {"all": 1}, {},
    ),
    "yolo, endings in capitals": (
        yolo(**{"images/train/A.JPG": 1, "labels/train/A.TXT": LINE}), {"all": 1}, {},
    ),
    "yolo, folders in capitals": (
        {"data.yaml": "train: Images\nval: Images\nnames: [cell]\n", "Images/a.jpg": 1, "Labels/a.txt": LINE},
        {"all": 1}, {},
    ),
    "yolo, class numbers as texts": (
        yolo("{'0': cell}", **{"images/train/a.jpg": 1, "labels/train/a.txt": LINE}), {"all": 1}, {},
    ),
    "yolo, one name for two classes": (
        yolo("[cell, cell]", **{"images/train/a.jpg": 1, "labels/train/a.txt": LINE}), {"all": 1},
        {"same_label": 1},
    ),
    "yolo, a split without images": (
        {"data.yaml": "train: a/images\nval: b/images\nnames: [cell]\n", "a/images/a.jpg": 1,
         "a/labels/a.txt": LINE, "b/images/none": b""},
        {"train": 1}, {"no_split": 1},
    ),
    "yolo, validated on training, with a test": (
        {"data.yaml": "train: a/images\nval: a/images\ntest: b/images\nnames: [cell]\n"}
        | {f"{n}/images/{n}.jpg": 1 for n in "ab"} | {f"{n}/labels/{n}.txt": LINE for n in "ab"},
        {"train": 1, "test": 1}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("quirk", READ)
def test_quirk__is_read_and_told(tmp_path: Path, quirk: str) -> None:
    files, images, findings = READ[quirk]
    report = converted(lay_out(tmp_path / "in", files))
    assert dict(report.images) == images
    assert {kind: len(notes) for kind, notes in report.findings.items()} == findings


NFD = unicodedata.normalize("NFD", "é.jpg")
REFUSED: dict[str, tuple[Files, str, str, str]] = {
    "coco, a URL": (
        {"c.json": coco(["https://x.org/a.jpg"]), "images/a.jpg": 1},
        "c.json: images[0]", "the image is a URL ('https://x.org/a.jpg'), and nothing", "fetch the images",
    ),
    "coco, a path of another machine": (
        {"c.json": coco(["C:\\d\\a.jpg"]), "images/a.jpg": 1},
        "c.json: images[0]", "the image path 'C:\\\\d\\\\a.jpg' is absolute", "write it relative to",
    ),
    "coco, a name in capitals": (
        {"c.json": coco(["A.JPG", "b.jpg"]), "images/a.jpg": 1, "images/b.jpg": 2},
        "c.json: images[0]", "the image 'images/A.JPG' is absent", "write 'a.jpg', as the file is named",
    ),
    "coco, a name in another unicode form": (
        {"c.json": coco(["é.jpg", "b.jpg"]), f"images/{NFD}": 1, "images/b.jpg": 2},
        "c.json: images[0]", "is absent", f"write {NFD!a}, as the file is named",
    ),
    "coco, UTF-16": (
        {"c.json": coco(["a.jpg"]).encode("utf-16"), "images/a.jpg": 1},
        "c.json", "the file is not UTF-8", "save it as UTF-8",
    ),
    "voc, an encoding that the parser lacks": (
        {"Annotations/a.xml": '<?xml version="1.0" encoding="gb2312"?>' + XML, "images/a.jpg": 1},
        "Annotations/a.xml", "multi-byte encodings are not supported", "save it as UTF-8",
    ),
    "voc, an empty XML": (
        {"Annotations/a.xml": "", "images/a.jpg": 1},
        "Annotations/a.xml", "the file is empty", "export it again",
    ),
    "voc, a CVAT XML": (
        {"Annotations/a.xml": "<annotations/>", "images/a.jpg": 1},
        "Annotations/a.xml", "expected the XML element <annotation>, got <annotations>", "as Pascal VOC",
    ),
    "yolo, key points undeclared": (
        yolo(**{"images/train/a.jpg": 1, "labels/train/a.txt": "0 0.5 0.5 0.2 0.2" + " 0.4 0.4 2" * 17}),
        "labels/train/a.txt:1", "got 56 numbers", "write kpt_shape into the settings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("quirk", REFUSED)
def test_quirk__is_refused_with_its_fix(tmp_path: Path, quirk: str) -> None:
    files, where, what, fix = REFUSED[quirk]
    folder = lay_out(tmp_path / "in", files)
    with pytest.raises(DataError) as caught:
        converted(folder)
    (problem,) = caught.value.problems
    assert problem.where == str(folder / where)
    assert what in problem.what
    assert fix in problem.fix


def test_broken_line_of_a_list__loses_no_other(tmp_path: Path) -> None:
    files = {"ImageSets/Main/train.txt": "a\nzz\n", "Annotations/a.xml": XML, "JPEGImages/a.jpg": 1}
    report = converted(lay_out(tmp_path / "in", files), skip_bad=True)
    assert (dict(report.images), [problem.what for problem in report.left_out]) == (
        {"train": 1},
        ["'zz' has no Annotations/zz.xml"],
    )


def test_name_that_begins_with_a_blank__survives_voc(tmp_path: Path) -> None:
    """A list's lines used to be stripped, so that what the writer wrote could not be read."""
    folder = lay_out(tmp_path / "in", {"train.json": coco([" a.jpg"]), "images/ a.jpg": 1})
    convert_dataset(folder, tmp_path / "voc", Conversion(target="voc"))
    report = converted(tmp_path / "voc", is_strict=True)
    assert dict(report.images) == {"train": 1}


def test_labels_of_a_broken_image__are_no_orphans(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "in", yolo(**{"images/train/a.jpg": "no", "labels/train/a.txt": LINE}))
    with pytest.raises(DataError) as caught:
        converted(folder)
    assert ["is not an image" in problem.what for problem in caught.value.problems] == [True]


@pytest.mark.parametrize(
    ("name", "content"),
    [("train/x.createml.json", '[{"image": "a", "annotations": []}]'), ("x.json", "[]"), ("x.xml", "<a/>")],
)
def test_files_of_other_formats__are_no_data_set(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match="no data set found"):
        detect_format(lay_out(tmp_path, {name: content}))


def test_byte_order_mark__of_a_sample_file(tmp_path: Path) -> None:
    line = '{"images": ["a.jpg"], "objects": []}\r\n'.encode("utf-8-sig")
    lay_out(tmp_path / "in", {"train.jsonl": line, "a.jpg": 1})
    assert dict(converted(tmp_path / "in", target="coco").images) == {"train": 1}


def test_image_with_a_broken_annotation__is_not_called_unnamed(tmp_path: Path) -> None:
    text = coco(["a.jpg", "b.jpg"]).replace('"bbox": [1,', '"bbox": [null,', 1)
    folder = lay_out(tmp_path / "in", {"c.json": text, "images/a.jpg": 1, "images/b.jpg": 2})
    assert "no_annotation" not in converted(folder, skip_bad=True).findings


def test_folder_that_may_not_be_entered__is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are listed, but asking for any of them fails; root would not notice."""
    folder = lay_out(tmp_path / "in", {"Annotations/a.xml": XML, "JPEGImages/a.jpg": 1}) / "Annotations"
    is_dir, access = Path.is_dir, os.access

    def forbidden(path: Path) -> bool:
        if path.parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", forbidden)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    for call in (converted, lambda path: find_data([path])):
        with pytest.raises(DataError) as caught:
            call(tmp_path / "in")
        (problem,) = caught.value.problems
        assert problem.what == "it cannot be read (Permission denied)"
        assert (problem.where, problem.fix) == (str(folder), f"chmod -R u+rX {folder}")


def test_link_back_into_annotations__is_not_followed(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "in", {"Annotations/a.xml": XML, "JPEGImages/a.jpg": 1})
    (folder / "Annotations" / "loop").symlink_to(folder / "Annotations")
    assert dict(converted(folder).images) == {"all": 1}
