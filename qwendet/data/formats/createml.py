"""CreateML's annotations: a list of images, boxes by centre and size in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field

from qwendet.data.formats.drawn import Drawn, Row, Shape, corners, numbers, read_as
from qwendet.data.formats.json_stream import records
from qwendet.data.formats.records import Item, or_problems
from qwendet.errors import DataError


class _Object(Row):
    label: Any = None
    coordinates: dict[str, Any]


class _Image(Row):
    image: str = Field(validation_alias=AliasChoices("image", "imagefilename"))
    annotations: list[_Object] = Field(validation_alias=AliasChoices("annotations", "annotation"))


def read_createml(file: Path) -> Iterator[Drawn | Item]:
    """Read a file of CreateML, image by image."""
    for where, value in records(file):
        yield from or_problems(_drawn(value, where))


def _drawn(value: Any, where: str) -> Iterator[Drawn]:
    found = read_as(_Image, value, where)
    objects = enumerate(found.annotations)
    yield Drawn(where, found.image, [_shape(own, f"{where}: annotations[{at}]") for at, own in objects])


def _shape(found: _Object, where: str) -> Shape:
    x, y, width, height = values = numbers(found.coordinates, "x y width height", where)
    if max(values) <= 1:
        raise DataError(f"expected pixels, got fractions: {values}", where, "multiply by the image's size")
    if min(width, height) < 0:
        raise DataError(f"expected a width and a height, got {values}", where, "x and y are the centre")
    return Shape(found.label, corners(x - width / 2, y - height / 2, width, height), where)
