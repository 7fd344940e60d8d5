"""Supervisely's annotations: ``ann/a.jpg.json`` for ``img/a.jpg``, with splits as folders or tags."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from qwendet.data.formats.drawn import (
    Drawn,
    Number,
    Point,
    Row,
    Shape,
    Size,
    corners,
    read_as,
    read_json,
)
from qwendet.data.formats.records import Item, split_of
from qwendet.data.images import decode_image
from qwendet.errors import DataError

AREAS = ("rectangle", "polygon")
MAX_BYTES = 1 << 24
"""Of the PNG that holds a mask."""


class _Tag(Row):
    name: str
    value: Any = True


class _Sides(Row):
    width: Size
    height: Size


class _Object(Row):
    classTitle: str  # noqa: N815
    geometryType: str = "rectangle"  # noqa: N815
    points: dict[str, Any] = Field(default_factory=dict)
    bitmap: dict[str, Any] | None = None
    tags: list[_Tag] = Field(default_factory=list)


class _File(Row):
    size: _Sides
    objects: list[_Object]
    tags: list[_Tag] = Field(default_factory=list)


def read_supervisely(file: Path) -> Iterator[Drawn | Item]:
    """Read the annotation of an image."""
    found = read_as(_File, read_json(file), str(file))
    splits = {split for tag in found.tags if (split := split_of(tag.name))}
    shapes = [_shape(own, f"{file}: objects[{index}]") for index, own in enumerate(found.objects)]
    split = splits.pop() if len(splits) == 1 else None
    yield Drawn(str(file), file.stem, shapes, (found.size.width, found.size.height), split)


def _shape(found: _Object, where: str) -> Shape:
    points: list[Point] = []
    kind = "box" if found.geometryType == "rectangle" else found.geometryType
    if found.geometryType in AREAS:
        points = read_as(list[tuple[Number, Number]], found.points.get("exterior"), where)
    elif found.bitmap is not None:
        points = _mask(found.bitmap, where)
    return Shape(
        found.classTitle,
        points,
        where,
        kind,
        {tag.name: tag.value is None or tag.value for tag in found.tags},
    )


def _mask(bitmap: dict[str, Any], where: str) -> list[Point]:
    """Corners of a mask: a PNG, compressed once more, and where its upper left pixel is."""
    x, y = read_as(tuple[Number, Number], bitmap.get("origin"), where)
    try:
        packed = base64.b64decode(str(bitmap.get("data")))
        png = zlib.decompressobj().decompress(packed, MAX_BYTES)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise DataError(f"bitmap.data cannot be read ({error})", where, "export it again") from error
    return corners(x, y, *map(float, decode_image(png, "bitmap.data", where).size))
