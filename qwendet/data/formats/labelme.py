"""Labelme's JSON, a file an image."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from qwendet.data.formats.drawn import (
    Drawn,
    Number,
    Row,
    Shape,
    Size,
    ellipse,
    mask_in_png,
    read_as,
    read_json,
)
from qwendet.data.formats.records import Item
from qwendet.data.segmentation import placed, require_drawable
from qwendet.errors import DataError

NO_EXTENT = ("point", "points", "line", "linestrip")


class _Shape(Row):
    points: Annotated[list[tuple[Number, Number]], Field(min_length=1)]
    label: Any = None
    shape_type: str = "polygon"
    flags: dict[str, Any] | None = None
    difficult: Any = False
    group_id: Any = None
    mask: str | None = None


class _File(Row):
    shapes: list[_Shape]
    imagePath: str  # noqa: N815
    imageWidth: Size | None = None  # noqa: N815
    imageHeight: Size | None = None  # noqa: N815


def read_labelme(file: Path) -> Iterator[Drawn | Item]:
    """Read a file of Labelme; shapes of one group and label are one object, as its own converters have it."""
    found = read_as(_File, read_json(file), str(file))
    size = (found.imageWidth, found.imageHeight) if found.imageWidth and found.imageHeight else None
    shapes = [_shape(shape, size, f"{file}: shapes[{index}]") for index, shape in enumerate(found.shapes)]
    yield Drawn(str(file), found.imagePath, shapes, size)


def _shape(shape: _Shape, size: tuple[int, int] | None, where: str) -> Shape:
    kind, points = shape.shape_type, shape.points
    if kind == "circle":
        (cx, cy), edge = points[0], points[-1]
        points = ellipse(cx, cy, *[math.dist((cx, cy), edge)] * 2)
    mask = None
    if kind == "mask" and shape.mask and size:
        require_drawable(size, where)
        try:
            drawn = mask_in_png(base64.b64decode(shape.mask), where)
        except binascii.Error as error:
            raise DataError(f"mask: it cannot be read ({error})", where, "draw it again") from error
        mask = placed(drawn, int(points[0][0]), int(points[0][1]), size)
    flags = (shape.flags or {}) | ({"difficult": True} if shape.difficult else {})
    kind = "box" if kind == "rectangle" else kind
    points = [] if kind in NO_EXTENT else points
    return Shape(shape.label, points, where, kind, flags, shape.group_id, mask)
