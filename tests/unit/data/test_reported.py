"""Kinds of data sets that people reported, each in variants: read whole, or refused in words that help."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwendet.checks.config.sample_files import find_data
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import run_data_checks
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.detect import detect_format
from qwendet.data.samples import check_label
from qwendet.errors import DataError
from qwendet.inference.detections import Prediction, write_predictions
from qwendet.inference.inputs import collect_samples
from tests.unit.data.test_quirks import LINE, XML, Files, coco, converted, lay_out, yolo
from tests.unit.data.voc_files import voc_object, voc_xml

APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        "
OTHER = voc_xml([voc_object((5, 5, 9, 9))], filename="b.jpg")
YOLO = yolo(**{"images/train/a.jpg": 1, "labels/train/a.txt": LINE})
VOC = {"Annotations/a.xml": XML, "JPEGImages/a.jpg": 1}
COCO = {"annotations/train.json": coco(["a.jpg"]), "train/a.jpg": 1}
JSONL = {"train.jsonl": '{"images": ["images/a.jpg"], "objects": []}\n', "images/a.jpg": 1}
SETS = {"yolo": YOLO, "voc": VOC, "coco": COCO}


def samples(folder: Path, **how: Any) -> dict[str, list[Any]]:
    """What a conversion writes: each image's boxes and labels, split by split."""
    converted(folder, **how)
    out = folder.parent / "out"
    lines = [line for file in sorted(out.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]
    shutil.rmtree(out)
    records = [json.loads(line) for line in lines]
    return {
        record["images"][0].removeprefix("images/"): [
            (item["desc"], item["bbox_2d"]) for item in record["objects"]
        ]
        for record in records
    }


# Files that nobody sees

HIDDEN: dict[str, tuple[Files, Files]] = {
    "yolo, Jupyter": (YOLO, {"images/train/.ipynb_checkpoints/a-checkpoint.jpg": 1,
                             "labels/train/.ipynb_checkpoints/a-checkpoint.txt": "0 .1 .1 .1 .1\n"}),
    "yolo, a Mac": (YOLO, {"images/train/._a.jpg": APPLE_DOUBLE, "labels/train/._a.txt": APPLE_DOUBLE,
                           "__MACOSX/images/train/._a.jpg": APPLE_DOUBLE, "._data.yaml": APPLE_DOUBLE}),
    "yolo, thumbnails": (YOLO, {"images/train/.thumbnails/a.jpg": 1, ".cache/labels/a.txt": LINE}),
    "voc, Jupyter": (VOC, {"Annotations/.ipynb_checkpoints/a-checkpoint.xml": OTHER,
                           "JPEGImages/.ipynb_checkpoints/a-checkpoint.jpg": 1}),
    "voc, a Mac": (VOC, {"Annotations/._a.xml": APPLE_DOUBLE, "JPEGImages/._a.jpg": APPLE_DOUBLE,
                         "ImageSets/Main/._train.txt": APPLE_DOUBLE}),
    "coco, Jupyter": (COCO, {"annotations/.ipynb_checkpoints/train-checkpoint.json": coco(["b.jpg"]),
                             "train/.ipynb_checkpoints/a-checkpoint.jpg": 1}),
    "coco, a Mac": (COCO, {"annotations/._train.json": APPLE_DOUBLE, "train/._a.jpg": APPLE_DOUBLE}),
}  # fmt: skip


@pytest.mark.parametrize("kind", HIDDEN)
def test_hidden__is_passed_over(tmp_path: Path, kind: str) -> None:
    plain, hidden = HIDDEN[kind]
    expected = samples(lay_out(tmp_path / "plain", plain))
    assert samples(lay_out(tmp_path / "in", plain | hidden), is_strict=True) == expected
    files = [sample.student.image for sample in collect_samples([tmp_path / "in"])]
    assert [Path(file).name for file in files] == ["a.jpg"]


OTHER_TEXTS = {"labels.txt": "cell\ndot\n", "obj.names": "cell\n", "classes.txt": "1\n2\n3\n",
               "README.txt": "By", "notes.txt": "exported 2024-01-02 10:30\n",
               "train.txt": "images/train/a.jpg\n"}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_TEXTS)
def test_texts_among_labels__are_none(tmp_path: Path, name: str) -> None:
    files = YOLO | {f"labels/train/{name}": OTHER_TEXTS[name]}
    assert [*samples(lay_out(tmp_path / "in", files))] == ["a.jpg"]


# Links

LINKED: dict[str, tuple[Files, str, str]] = {
    "yolo, images on another disk": (YOLO, "images", "disk"),
    "yolo, images and labels of a split": (YOLO, "images/train", "disk"),
    "yolo, labels": (YOLO, "labels", "disk"),
    "yolo, one image": (YOLO, "images/train/a.jpg", "blobs/0a1b"),
    "yolo, settings": (YOLO, "data.yaml", "blobs/0a1b"),
    "voc, images": (VOC, "JPEGImages", "disk"),
    "voc, annotations": (VOC, "Annotations", "disk"),
    "voc, one annotation": (VOC, "Annotations/a.xml", "blobs/0a1b"),
    "coco, images": (COCO, "train", "disk"),
    "coco, annotations": (COCO, "annotations", "disk"),
    "coco, one image": (COCO, "train/a.jpg", "blobs/0a1b"),
    "coco, annotation file": (COCO, "annotations/train.json", "blobs/0a1b"),
}


@pytest.mark.parametrize("kind", LINKED)
@pytest.mark.parametrize("images", ["copy", "link"])
def test_links_of_the_user__are_followed(tmp_path: Path, kind: str, images: Any) -> None:
    files, name, target = LINKED[kind]
    folder = lay_out(tmp_path / "in", files)
    expected = samples(folder)
    (tmp_path / target).parent.mkdir(exist_ok=True)
    (folder / name).rename(tmp_path / target)
    (folder / name).symlink_to(tmp_path / target)
    assert samples(folder, images=images) == expected
    results, _ = run_data_checks(find_data([folder]), None, Thoroughness("full", workers=1))
    assert [result.id for result in results if result.status == "fail"] == []
    placed = converted(folder, images=images).files[0].parent / "images"
    assert [file.is_symlink() for file in placed.rglob("*.jpg")] == [False]


def test_pictures_shared_between_tasks__are_read(tmp_path: Path) -> None:
    """As coco128: each task's ``images`` is a link to one folder; from above, the tasks are named."""
    files = {"images/a.jpg": 1} | {f"{task}/labels/a.txt": LINE for task in ("boxes", "masks")}
    settings = {
        f"{task}/data.yaml": "train: images\nval: images\nnames: [cell]" for task in ("boxes", "masks")
    }
    folder = lay_out(tmp_path / "in", files | settings)
    for task in ("boxes", "masks"):
        (folder / task / "images").symlink_to("../images")
    with pytest.raises(DataError, match="no data set in this folder, but below it: boxes, masks"):
        detect_format(folder)
    report = convert_dataset(folder / "boxes", tmp_path / "out", Conversion())
    assert (dict(report.images), report.boxes) == ({"all": 1}, {"all": {"cell": 1}})


@pytest.mark.parametrize(
    "images", ["../secret.jpg", "link/../../secret.jpg", "/etc/passwd", "images/../../secret.jpg"]
)
def test_paths_in_files__still_cannot_lead_out(tmp_path: Path, images: str) -> None:
    folder = lay_out(tmp_path / "in", JSONL | {"val.jsonl": json.dumps({"images": [images], "objects": []})})
    lay_out(tmp_path, {"secret.jpg": 1, "disk/a.jpg": 1})
    (folder / "link").symlink_to(tmp_path / "disk")
    with pytest.raises(DataError, match=r"leaves the data set's folder|is absolute"):
        convert_dataset(folder, tmp_path / "out", Conversion(target="coco"))
    with pytest.raises(DataError, match=r"leaves the data root|is absolute"):
        collect_samples([folder / "val.jsonl"])


def test_links_that_lead_round__end(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "in", YOLO | {"images/train/deep/b.jpg": 2})
    (folder / "images/train/deep/up").symlink_to(folder / "images")
    (folder / "images/train/deep/twin").symlink_to(folder / "images" / "train" / "deep")
    (folder / "images/train/out").symlink_to(tmp_path / "disk")
    lay_out(tmp_path / "disk", {"c.jpg": 3})
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "disk")
    assert sorted(samples(folder)) == ["a.jpg", "deep/b.jpg", "out/c.jpg"]


# Names

NAMES = {
    "macOS screenshot": "Screenshot 2025-03-04 at 9.15.02\u202fPM.jpg",
    "no-break space": "fire\xa0truck.jpg",
    "wide space": "\u65e0\u3000\u9898.jpg",
    "flag": "\U0001f1eb\U0001f1f7.jpg",
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467.jpg",
    "England": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f.jpg",
    "quotes and commas": "a, \"b\" & 'c' #1 %41.jpg",
    "GBK": os.fsdecode("\u87ba\u4e1d\u87ba".encode("gbk")) + ".jpg",
    "Latin-1": os.fsdecode("Stra\xdfe.jpg".encode("latin-1")),
    "Shift JIS": os.fsdecode("\u306d\u3058.jpg".encode("shift_jis")),
    "Persian": "\u0645\u06cc\u200c\u062e.jpg",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("source", SETS)
def test_names__are_ordinary(tmp_path: Path, kind: str, source: str) -> None:
    """Names that are not UTF-8 ended in "this is a bug: UnicodeEncodeError"."""
    name = NAMES[kind]
    stem = name.removesuffix(".jpg")
    files = {
        "yolo": yolo(**{f"images/train/{name}": 1, f"labels/train/{stem}.txt": LINE}),
        "voc": {f"Annotations/{stem}.xml": XML, f"JPEGImages/{name}": 1},
        "coco": {"train.json": coco([name]), f"images/{name}": 1},
    }[source]
    folder = lay_out(tmp_path / "in", files)
    results, _ = run_data_checks(find_data([folder]), None, Thoroughness("full", workers=1))
    assert [result.id for result in results if result.status == "fail"] == []
    for target in ("jsonl", "coco", "voc", "yolo"):
        for images in ("copy", "reference"):
            report = convert_dataset(folder, tmp_path / "out", Conversion(target=target, images=images))
            assert sum(report.images.values()) == 1
            if images == "copy":
                assert convert_dataset(
                    tmp_path / "out",
                    tmp_path / "back",
                    Conversion(target="coco" if target != "coco" else "yolo"),
                ).boxes
                written = [file.name.encode() for file in (tmp_path / "out").rglob("*.jpg")]  # all in UTF-8
                assert len(written) == 1
            elif target == "jsonl":
                (file,) = report.files
                assert len(collect_samples_in(file, report.data_root)) == 1
            for made in ("out", "back"):
                shutil.rmtree(tmp_path / made, ignore_errors=True)


def collect_samples_in(file: Path, root: Path | None) -> list[Any]:
    results, _ = run_data_checks(find_data([file]), root, Thoroughness("full", workers=1))
    return [result for result in results if result.id == "config.images.open" and result.status == "pass"]


@pytest.mark.parametrize(
    "name", ["a\n.jpg", "a\x1b[31m.jpg", "a\u202egpj.jpg", "a\u200b.jpg", "\ufeffa.jpg", "a\u2028.jpg"]
)
def test_names__that_control_or_deceive(tmp_path: Path, name: str) -> None:
    folder = lay_out(tmp_path / "in", {"train.json": coco([name]), f"images/{name}": 1})
    with pytest.raises(DataError, match=r"holds control characters \(U\+"):
        converted(folder)


@pytest.mark.parametrize(
    ("label", "read"),
    [
        ("fire\xa0truck", "fire truck"), ("fire\u202ftruck", "fire truck"), ("fire\u3000truck", "fire truck"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", None), ("\U0001f1e9\U0001f1ea", None),
        ("e\u0301", "\xe9"),
        ('bolt, M8 "long" / \u03bc', None), ("\U0001fae8", None), ("\U0001f468\u200d\U0001f469", None),
    ],
)  # fmt: skip
def test_labels__as_people_write_them(label: str, read: str | None) -> None:
    assert check_label(label, "x", "desc") == (label if read is None else read)


@pytest.mark.parametrize(
    ("label", "character"),
    [
        ("a\u200bb", "U+200B ZERO WIDTH SPACE"),
        ("a\tb", "U+0009"),
        ("a\u202eb", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("\U000e0067", "U+E0067 TAG LATIN SMALL LETTER G"),
        ("a\xadb", "U+00AD SOFT HYPHEN"),
        ("\udcd6", "U+DCD6"),
    ],
)
def test_labels__what_nobody_sees_is_named(label: str, character: str) -> None:
    with pytest.raises(DataError) as caught:
        check_label(label, "x", "desc")
    assert f"holds control characters ({character})" in caught.value.problems[0].what


@pytest.mark.parametrize("kind", ["GBK", "Latin-1", "Shift JIS"])
def test_predictions__of_names_that_are_not_utf8(tmp_path: Path, kind: str) -> None:
    """Their JSON names the file again when it is read."""
    folder = lay_out(tmp_path / "in", {NAMES[kind]: 1})
    (sample,) = collect_samples([folder])
    write_predictions([Prediction(sample.student.image, 64, 48, (), 0)], tmp_path / "out.jsonl")
    found = json.loads((tmp_path / "out.jsonl").read_text("utf-8"))
    assert (folder / found["image"]).is_file()
