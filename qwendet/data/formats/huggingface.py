"""Image folders of the Hugging Face hub: ``metadata.jsonl`` with ``objects``; all boxes decide their form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from qwendet.data.formats.drawn import Drawn, Number, Row, Shape, corners, read_as
from qwendet.data.formats.json_stream import records
from qwendet.data.formats.records import Finding, Item, or_problems
from qwendet.data.images import image_size
from qwendet.data.rows import are_corners, box_of, label_of, objects_of
from qwendet.errors import DataError


class _Object(Row):
    bbox: tuple[Number, Number, Number, Number]


class _Image(Row):
    file_name: str
    objects: dict[str, list[Any]] | list[dict[str, Any]] = Field(default_factory=list)
    where: str = ""


def read_huggingface(file: Path) -> Iterator[Drawn | Item]:
    """Read the metadata of an image folder.

    Raises:
        DataError: if its boxes are neither as COCO writes them nor corners.
    """
    is_corners, why = are_corners(_all_boxes(file), str(file))
    yield Finding("frame", f"{file}: {why}")
    for place, value in records(file):
        yield from or_problems(_drawn(value, is_corners, place))


def _drawn(value: Any, is_corners: bool, place: str) -> Iterator[Drawn]:
    image, where, found = _read(value, place)
    shapes = [_shape(own, is_corners, f"{where}: objects[{at}]") for at, own in enumerate(found)]
    yield Drawn(where, image.file_name, shapes)


Quad = tuple[Number, Number, Number, Number]
Boxed = tuple[Quad, Mapping[str, Any]]
"""A box as it is written, and all that is said of it."""


def _read(value: Any, place: str) -> tuple[_Image, str, list[Boxed]]:
    image = read_as(_Image, value, place)
    where = image.where or place
    rows = objects_of({"objects": image.objects}, where)
    return image, where, [(read_as(_Object, {"bbox": box_of(own)}, where).bbox, own) for own in rows]


def _all_boxes(file: Path) -> Iterator[tuple[Sequence[float], tuple[int, int]]]:
    for place, value in records(file):
        try:
            image, where, found = _read(value, place)
            size = image_size(image.file_name, file.parent, where)
        except DataError:  # reported when it is read
            continue
        yield from ((box, size) for box, _ in found)


def _shape(found: Boxed, is_corners: bool, where: str) -> Shape:
    (x, y, right, low), values = found
    if not is_corners and min(right, low) < 0:
        raise DataError(f"expected a width and a height, got {found[0]}", where, "correct it")
    points = [(x, y), (right, low)] if is_corners else corners(x, y, right, low)
    return Shape(label_of(values, {}), points, where, attributes=values)
