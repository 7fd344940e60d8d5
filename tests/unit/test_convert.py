"""Conversions: what is written, what is said, and nothing is half written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.data.convert import Conversion, ConversionReport, convert_dataset
from qwendet.data.images import open_image
from qwendet.data.placing import Placement
from qwendet.data.records import Record
from qwendet.data.samples import SampleFile
from qwendet.data.voc import open_voc
from qwendet.errors import DataError, Problem
from qwendet.progress import silent

WIDTH, HEIGHT = 64, 48
BILLION_LAUGHS = """<!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
EXTERNAL_ENTITY = """<!DOCTYPE annotation [<!ENTITY secret SYSTEM "file:///etc/passwd">]>
<annotation><object><name>&secret;</name></object></annotation>"""

Box = tuple[object, object, object, object]


def voc_object(box: Box, name: str = "cell", extra: str = "") -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def voc_xml(
    objects: Sequence[str] = (), filename: str | None = None, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> str:
    name = f"<filename>{filename}</filename>" if filename else ""
    claimed = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{name}{claimed}{''.join(objects)}</annotation>"


class Voc:
    """A VOC folder to be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)

    def add(self, stem: str, *objects: str, xml: str | None = None, suffix: str = ".jpg") -> Path:
        Image.new("RGB", (WIDTH, HEIGHT), "white").save(self.folder / "JPEGImages" / f"{stem}{suffix}")
        path = self.folder / "Annotations" / f"{stem}.xml"
        path.write_text(xml or voc_xml(objects), encoding="utf-8")
        return path

    def split(self, name: str, *lines: str) -> None:
        (self.folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def voc(tmp_path: Path) -> Voc:
    return Voc(tmp_path / "voc")


def read_voc(folder: Path) -> list[Record]:
    return [item for item in open_voc(folder).items if isinstance(item, Record)]


def convert_voc(src: Path, dst: Path, images: Placement = "copy") -> ConversionReport:
    return convert_dataset(src, dst, Conversion("voc", images=images), silent)


def splits_of(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in read_voc(folder):
        found.setdefault(record.split, []).append(Path(record.sample.where).stem)
    return found


def read_error(folder: Path) -> DataError:
    with pytest.raises(DataError) as error:
        problems = [item for item in open_voc(folder).items if isinstance(item, Problem)]
        raise DataError.of(problems)
    return error.value


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_convert_voc__copy(voc: Voc, tmp_path: Path) -> None:
    voc.add("a", voc_object((1, 2, 30.5, 40), extra="<difficult>1</difficult>"), voc_object((5, 5, 5, 9)))
    voc.add("b")
    voc.add("c")
    voc.split("train", "a")
    voc.split("val", "b")
    report = convert_voc(voc.folder, tmp_path / "out" / "data")
    assert report.files == tuple(tmp_path / "out" / "data" / f"{name}.jsonl" for name in ("train", "val"))
    assert lines_of(report.files[0]) == [
        {
            "images": ["images/a.jpg"],
            "objects": [{"bbox_2d": [1, 2, 30.5, 40], "desc": "cell", "difficult": True}],
            "width": WIDTH,
            "height": HEIGHT,
        }
    ]
    assert (report.images, report.boxes) == ({"train": 1, "val": 1}, {"train": {"cell": 1}, "val": {}})
    assert len(report.findings["zero_area"]) == 1
    assert report.findings["unlisted"] == (f"{voc.folder / 'Annotations' / 'c.xml'}: in no split list",)
    assert report.data_root is None
    assert sorted(path.name for path in (tmp_path / "out" / "data" / "images").iterdir()) == [
        "a.jpg",
        "b.jpg",
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]  # no partial folder stays


def test_convert_voc__link(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    report = convert_voc(voc.folder, tmp_path / "data", images="link")
    linked = tmp_path / "data" / "images" / "a.jpg"
    assert linked.samefile(voc.folder / "JPEGImages" / "a.jpg")
    assert not linked.is_symlink()
    assert open_image("images/a.jpg", report.files[0].parent, "x").size == (WIDTH, HEIGHT)


def test_convert_voc__link__impossible(voc: Voc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    voc.add("a")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(DataError, match=r"Invalid cross-device link.*copy the images instead"):
        convert_voc(voc.folder, tmp_path / "data", images="link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["voc"]


def test_convert_voc__reference(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    report = convert_voc(tmp_path, tmp_path / "data", images="reference")
    assert report.data_root == voc.folder.resolve()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["all.jsonl"]
    (sample,) = SampleFile(report.files[0])
    assert open_image(sample.student.image, report.data_root, "x").size == (WIDTH, HEIGHT)


def test_convert_voc__nothing_is_half_written(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    voc.add("b", xml="broken")
    with pytest.raises(DataError, match="broken file"):
        convert_voc(voc.folder, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_convert_voc__interrupted_while_copying(
    voc: Voc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    voc.add("a")
    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_voc(voc.folder, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_convert_voc__occupied_destination(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").touch()
    for dst in (tmp_path / "data", tmp_path / "data" / "notes.txt"):
        with pytest.raises(DataError) as error:
            convert_voc(voc.folder, dst)
        assert str(error.value) == f"{dst}: expected a folder that is absent or empty (give another folder)"


def test_convert_voc__empty_destination(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    (tmp_path / "data").mkdir()
    assert convert_voc(voc.folder, tmp_path / "data").images == {"all": 1}


def test_convert_voc__unwritable_destination(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the data set .*Not a directory"):
        convert_voc(voc.folder, tmp_path / "file" / "data")


def test_convert_voc__image_of_two_splits_is_placed_once(
    voc: Voc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voc.add("a")
    voc.split("val", "a")
    voc.split("test", "a")
    copies: list[Path] = []
    copy = shutil.copyfile

    def count(source: Path, target: Path) -> Path:
        copies.append(source)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", count)
    assert convert_voc(voc.folder, tmp_path / "data").images == {"val": 1, "test": 1}
    assert len(copies) == 1


@pytest.mark.parametrize("images", ["copy", "reference"])
def test_convert_voc__real_data(shared: Path, tmp_path: Path, images: Placement) -> None:
    report = convert_voc(shared / "data" / "bccd" / "BCCD", tmp_path / "data", images=images)
    assert report.images == {"train": 205, "val": 87, "test": 72}
    totals = {
        label: sum(counts[label] for counts in report.boxes.values()) for label in ("RBC", "WBC", "Platelets")
    }
    assert totals == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}
    assert sum(totals.values()) == 4888 - 2
    assert sorted(Path(note.split(": ")[0]).stem for note in report.findings["zero_area"]) == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]
    assert report.findings.keys() == {"zero_area"}
    for path in report.files:
        root = report.data_root or path.parent
        for sample in SampleFile(path):
            turn = sample.student
            assert (root / turn.image).is_file()
            assert (turn.width, turn.height) == (640, 480)
    assert sum(len(SampleFile(path)) for path in report.files) == 364
