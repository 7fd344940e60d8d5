"""VOC folders made by tests, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.data.formats.convert import Conversion, ConversionReport, convert_dataset
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.placing import Placement
from qwendet.data.formats.records import Record
from qwendet.errors import DataError, Problem

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


def read_voc(folder: Path, image_dir: Path | None = None, *, may_be_absent: bool = False) -> list[Record]:
    source = open_source(folder, "voc", image_dir, may_be_absent=may_be_absent)
    return [item for item in source.items if isinstance(item, Record)]


def convert_voc(src: Path, dst: Path, images: Placement = "copy") -> ConversionReport:
    return convert_dataset(src, dst, Conversion("voc", images=images))


def splits_of(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in read_voc(folder):
        found.setdefault(record.split, []).append(Path(record.where).stem)
    return found


def read_error(folder: Path) -> DataError:
    with pytest.raises(DataError) as error:
        problems = [item for item in open_source(folder, "voc").items if isinstance(item, Problem)]
        raise DataError.of(problems)
    return error.value


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
