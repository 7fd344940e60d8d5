"""Datumaro's own JSON: items with their annotations, one file a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field

from qwendet.data.formats.drawn import (
    Drawn,
    Number,
    Point,
    Row,
    Shape,
    Size,
    corners,
    numbers,
    paired,
    read_as,
    turned,
)
from qwendet.data.formats.json_stream import stream_lists
from qwendet.data.formats.records import Item, Labels, or_problems
from qwendet.data.segmentation import extent, read_rle
from qwendet.errors import DataError

NO_EXTENT = ("label", "points", "polyline", "caption")


class _Label(Row):
    name: str


class _Labels(Row):
    labels: list[_Label] = Field(default_factory=list)


class _Categories(Row):
    label: _Labels = _Labels()


class _Media(Row):
    path: str = ""
    size: tuple[Size, Size] | None = None


class _Annotation(Row):
    type: str
    label_id: int | None = None
    attributes: dict[str, Any] = Field(default_factory=dict)
    group: int = 0
    bbox: list[Number] = Field(default_factory=list)
    points: list[Number] = Field(default_factory=list)
    rle: dict[str, Any] = Field(default_factory=dict)


class _Item(Row):
    id: str
    annotations: list[_Annotation]
    media: _Media = Field(_Media(), validation_alias=AliasChoices("media", "image"))


def read_datumaro(file: Path) -> Iterator[Drawn | Item]:
    """Read a file of Datumaro, item by item; annotations of one group and label are one object."""
    names: list[str] = []
    for key, index, value, *_ in stream_lists(file):
        where = f"{file}: {key}[{index}]"
        if key == "categories" and isinstance(value, dict):
            names = [found.name for found in read_as(_Categories, value, f"{file}: categories").label.labels]
            yield Labels(tuple(names))
        elif key == "items" and index >= 0:
            yield from or_problems(_drawn(value, names, where))


def _drawn(value: Any, names: Sequence[str], where: str) -> Iterator[Drawn]:
    item = read_as(_Item, value, where)
    own = enumerate(item.annotations)
    shapes = [_shape(found, names, f"{where}.annotations[{at}]") for at, found in own]
    size = item.media.size and (item.media.size[1], item.media.size[0])
    yield Drawn(where, item.media.path or item.id, shapes, size)


def _shape(found: _Annotation, names: Sequence[str], where: str) -> Shape:
    label = found.label_id
    if label is None or not 0 <= label < len(names):
        raise DataError(f"label_id: there is no label {label} among {len(names)}", where, "correct it")
    kind, points, mask = "box" if found.type == "bbox" else found.type, list[Point](), None
    if found.type == "bbox":
        points = corners(*numbers(dict(zip("xywh", found.bbox, strict=False)), "x y w h", where))
    elif found.type in ("polygon", "ellipse", "cuboid_2d"):
        points = paired(found.points[::2], found.points[1::2], where)
    elif found.type == "rotated_bbox":
        x, y, w, h, degrees = numbers(dict(zip("xywhr", found.bbox, strict=False)), "x y w h r", where)
        points = turned(corners(x - w / 2, y - h / 2, w, h), degrees, (x, y))
    elif found.type == "mask":
        mask = read_rle(found.rle, where, "rle")
        around = extent(mask)
        points = [] if around is None else [around[:2], around[2:]]
    elif found.type not in NO_EXTENT:
        raise DataError(f"an annotation of the type {found.type!r} is not read", where, "export as COCO")
    return Shape(names[label], points, where, kind, found.attributes, found.group or None, mask)
