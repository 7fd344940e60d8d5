"""What annotation tools draw: an image and its shapes, as the reader of a tool's files yields them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from qwendet.data.formats.records import Item
from qwendet.data.images import decode_image
from qwendet.data.segmentation import Rle
from qwendet.errors import DataError
from qwendet.files import read_text

OUTLINES = ("polygon", "rotated box", "rotated_bbox")
"""Kinds of shapes whose points are their corners, one after another."""
DECIMALS = 4
"""Places that corners are rounded to."""

Point = tuple[float, float]
Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
"""Of a file: also one written as a text."""
Size = Annotated[int, Field(gt=0, lt=1e9)]


class Row(BaseModel):
    """What a reader asks of a piece of a file; what else it holds does not matter."""

    model_config = ConfigDict(coerce_numbers_to_str=True, populate_by_name=True)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape with a label.

    Attributes:
        label: as written.
        points: corners, of a box two opposite ones; none for what has no extent (tags, points, lines).
        where: its place in the file.
        kind: what the tool calls it; those of ``OUTLINES`` are kept beside their boxes.
        attributes: those of ``rows.FLAGS`` count, in any case; others, such as occluded, are not kept.
        group: shapes of one group and label are one object; ``None`` is an object of its own.
        mask: that the points are corners of.
    """

    label: Any
    points: Sequence[Point]
    where: str
    kind: str = "box"
    attributes: Mapping[str, Any] | None = None
    group: Any = None
    mask: Rle | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image and what is drawn in it.

    Attributes:
        where: the annotation.
        image: path or name as written, perhaps of another machine.
        shapes: in pixels, or in fractions of the displayed image.
        size: width and height that the annotation claims.
        split: that it names itself.
        in_fractions: how points are given.
        other_name: what the image may be called instead.
        may_lack: the image need not be there: it is counted then, and left out.
    """

    where: str
    image: str
    shapes: Sequence[Shape]
    size: tuple[int, int] | None = None
    split: str | None = None
    in_fractions: bool = False
    other_name: str = ""
    may_lack: bool = False


Reader = Callable[[Path], Iterator[Drawn | Item]]
"""Reads a file; a :class:`DataError` that it raises is about the whole file."""


_form: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def read_as(kind: type[T], value: Any, where: str) -> T:
    """A piece of a file in the form that is asked for.

    Raises:
        DataError: naming the first key whose value does not fit.
    """
    try:
        found: T = _form(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(map(str, first["loc"]))
        asked = first["msg"].replace("Input should be", "expected").replace("Field required", "it is absent")
        shown = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
        raise DataError(": ".join(filter(None, (path, asked + shown))), where, "correct it") from error
    return found


def numbers(values: Mapping[str, Any], names: str, where: str) -> list[float]:
    """The numbers of these names.

    Raises:
        DataError: for one that is absent, or no finite number.
    """
    return list(
        read_as(dict[str, Number], {name: values.get(name) for name in names.split()}, where).values()
    )


def mask_in_png(content: bytes, where: str) -> NDArray[np.bool_]:
    """Where an object is, by a PNG that is transparent, or black, where it is not.

    Raises:
        DataError: for a file that is broken or too large.
    """
    decode_image(content, "the mask", where)
    with Image.open(io.BytesIO(content)) as stored:
        seen = stored.convert("RGBA").getchannel("A") if stored.has_transparency_data else stored.convert("L")
    return np.asarray(seen) > 0


def paired(xs: Sequence[float], ys: Sequence[float], where: str) -> list[Point]:
    """Corners from their coordinates.

    Raises:
        DataError: unless there are as many of each.
    """
    if len(xs) != len(ys):
        what = f"expected x and y of each corner, got {len(xs)} and {len(ys)} numbers"
        raise DataError(what, where, "draw the shape again")
    return list(zip(xs, ys, strict=True))


def read_json(file: Path) -> Any:
    """A JSON file as a whole.

    Raises:
        DataError: if it is broken, or cannot be read.
    """
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"expected JSON, got a broken file ({error})", str(file), "export it again"
        ) from error


def turned(points: Sequence[Point], degrees: float, about: Point) -> list[Point]:
    """Points turned clockwise, as they are seen, about one of them or another.

    Example:
        >>> turned([(2, 0)], 90, (0, 0))
        [(0.0, 2.0)]
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved = [(x - about[0], y - about[1]) for x, y in points]
    return [
        (round(about[0] + x * cos - y * sin, DECIMALS), round(about[1] + x * sin + y * cos, DECIMALS))
        for x, y in moved
    ]


def corners(x: float, y: float, width: float, height: float) -> list[Point]:
    """The four corners of a box, from its upper left one on."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float = 0) -> list[Point]:
    """Two corners of what an ellipse, turned about its centre, extends over."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return [(cx - across, cy - down), (cx + across, cy + down)]
