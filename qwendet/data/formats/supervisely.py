"""Supervisely's annotations: ``ann/a.jpg.json`` for ``img/a.jpg``, with splits as folders or tags."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from itertools import chain
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
    mask_in_png,
    read_as,
    read_json,
)
from qwendet.data.formats.records import Item, split_of
from qwendet.data.segmentation import Rle, holed, placed, require_drawable
from qwendet.errors import DataError

Points = list[tuple[Number, Number]]
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
    size = (found.size.width, found.size.height)
    shapes = [_shape(own, size, f"{file}: objects[{index}]") for index, own in enumerate(found.objects)]
    split = splits.pop() if len(splits) == 1 else None
    yield Drawn(str(file), file.stem, shapes, size, split)


def _shape(found: _Object, size: tuple[int, int], where: str) -> Shape:
    points: list[Point] = []
    mask: Rle | None = None
    kind = "box" if found.geometryType == "rectangle" else found.geometryType
    if found.geometryType in AREAS:
        points = read_as(Points, found.points.get("exterior"), where)
        holes = read_as(list[Points], found.points.get("interior") or [], where)
        if holes and len(points) > 2:
            require_drawable(size, where)
            outer, *inner = ((*chain.from_iterable(own),) for own in (points, *holes))
            kind, mask = "polygon with holes", holed((outer,), tuple(inner), size)
    elif found.bitmap is not None:
        points, mask = _mask(found.bitmap, size, where)
    flags = {tag.name: tag.value is None or tag.value for tag in found.tags}
    return Shape(found.classTitle, points, where, kind, flags, mask=mask)


def _mask(bitmap: dict[str, Any], size: tuple[int, int], where: str) -> tuple[list[Point], Rle]:
    """Corners of a mask, and the mask: a PNG, compressed once more, and where its upper left pixel is."""
    x, y = read_as(tuple[Number, Number], bitmap.get("origin"), where)
    try:
        packed = base64.b64decode(str(bitmap.get("data")))
        png = zlib.decompressobj().decompress(packed, MAX_BYTES)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise DataError(f"bitmap.data cannot be read ({error})", where, "export it again") from error
    require_drawable(size, where)
    drawn = mask_in_png(png, where)
    return corners(x, y, drawn.shape[1], drawn.shape[0]), placed(drawn, int(x), int(y), size)
