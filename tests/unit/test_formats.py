"""Which format a path holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.data.formats.convert import Conversion, ConversionReport, convert_dataset
from qwendet.data.formats.detect import detect_format
from qwendet.data.formats.placing import Placement
from qwendet.data.formats.records import Record
from qwendet.data.formats.voc import open_voc
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


@pytest.mark.parametrize("name", ["train.jsonl", "all.jsonl"])
def test_detect_format__jsonl(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert detect_format(tmp_path) == detect_format(tmp_path / name) == "jsonl"


def test_detect_format__voc(voc: Voc) -> None:
    voc.add("a")
    assert detect_format(voc.folder) == detect_format(voc.folder.parent) == "voc"


@pytest.mark.parametrize("name", ["instances.json", "annotations/instances_train.json"])
def test_detect_format__coco(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"images": [],' + " " * (1 << 20) + '"annotations": []}', encoding="utf-8")
    assert detect_format(tmp_path) == detect_format(path) == "coco"


def test_detect_format__coco__key_across_two_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" " * ((1 << 20) - 5) + '"annotations"', encoding="utf-8")
    assert detect_format(tmp_path) == "coco"


def test_detect_format__yolo(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    assert detect_format(tmp_path) == "yolo"
    (tmp_path / "data.yaml").touch()
    assert detect_format(tmp_path / "data.yaml") == "yolo"


def test_detect_format__nothing_known(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}", encoding="utf-8")
    for path in (tmp_path, tmp_path / "package.json"):
        with pytest.raises(DataError) as error:
            detect_format(path)
        assert str(error.value).startswith(f"{path}: no data set found: expected a .jsonl file")


def test_detect_format__absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no such file or folder"):
        detect_format(tmp_path / "missing")


def test_detect_format__real_data(shared: Path) -> None:
    assert detect_format(shared / "data" / "bccd") == "voc"
    assert detect_format(shared / "data" / "nuts" / "data") == "coco"


def test_detect_format__the_only_data_set_of_a_folder(shared: Path, tmp_path: Path) -> None:
    assert detect_format(shared / "data" / "nuts") == "coco"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.yaml").touch()
        if name == "a":
            assert detect_format(tmp_path) == "yolo"
    with pytest.raises(DataError, match="no data set found"):
        detect_format(tmp_path)
