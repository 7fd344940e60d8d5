"""CVAT's XML for images, image by image; the tracks of its XML for videos name no image and are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from defusedxml import DefusedXmlException, ElementTree
from pydantic import Field

from qwendet.data.formats.drawn import (
    Drawn,
    Number,
    Point,
    Row,
    Shape,
    Size,
    corners,
    ellipse,
    numbers,
    read_as,
    turned,
)
from qwendet.data.formats.records import Item, Labels, or_problems, split_of
from qwendet.data.segmentation import Rle, placed, require_drawable
from qwendet.errors import DataError, Problem

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SHAPES = ("box", "polygon", "ellipse", "mask", "cuboid", "polyline", "points", "skeleton", "tag")
Size0 = Annotated[int, Field(ge=0, lt=1e9)]
CUBOID = " ".join(f"x{end} y{end}" for end in ("tl1", "bl1", "tr1", "br1", "tl2", "bl2", "tr2", "br2"))


class _Image(Row):
    name: str
    width: Size | None = None
    height: Size | None = None
    subset: str = ""


def read_cvat(file: Path) -> Iterator[Drawn | Item]:
    """Read an export as "CVAT for images 1.1", element by element.

    Raises:
        DataError: if it is broken, or declares entities.
    """
    try:
        with file.open("rb") as opened:
            yield from _elements(file, ElementTree.iterparse(opened, events=("start", "end")))
    except DefusedXmlException as error:
        what = "the XML declares entities, which can read other files or fill the memory"
        raise DataError(what, str(file), "remove its <!DOCTYPE …>") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(
            f"expected CVAT's XML, got a broken file ({error})", str(file), "export it again"
        ) from error


def _elements(file: Path, parsing: Iterator[tuple[str, Element]]) -> Iterator[Drawn | Item]:
    """Images and labels as they come; what has been read is dropped."""
    root = next(parsing)[1]
    for event, element in parsing:
        if event == "end" and element.tag == "image":
            yield from or_problems(_image(element, f"{file}: image {element.get('name', '?')!r}"))
        elif event == "end" and element.tag == "labels":
            names = [found.findtext("name") or "" for found in element.findall("label")]
            yield Labels(tuple(filter(None, names)))
        elif event == "end" and element.tag == "track":
            what = "this is a track of a video: its boxes name frames, and no images"
            yield Problem(what, f"{file}: track {element.get('id', '?')}", "export as CVAT for images 1.1")
        if event == "end" and element.tag in ("image", "track"):
            root.clear()


def _image(element: Element, where: str) -> Iterator[Drawn]:
    image = read_as(_Image, element.attrib, where)
    size = (image.width, image.height) if image.width and image.height else None
    shapes = [
        _shape(found, size, f"{where}: {found.tag} {index}")
        for index, found in enumerate((child for child in element if child.tag in SHAPES), start=1)
    ]
    yield Drawn(where, image.name, shapes, size, split_of(image.subset))


def _shape(element: Element, size: tuple[int, int] | None, where: str) -> Shape:
    attributes = {item.get("name", ""): (item.text or "").strip() for item in element.iter("attribute")}
    kind, points = _points(element, where)
    if element.get("outside") == "1":
        kind, points = f"{element.tag} that is marked as outside of the image", []
    mask = _mask(element, size, where) if size and kind == "mask" else None
    return Shape(element.get("label"), points, where, kind, attributes, mask=mask)


def _mask(element: Element, size: tuple[int, int], where: str) -> Rle:
    """The mask of a part of the image: lengths of runs, row by row, the first of the background."""
    left, top, width, height = map(int, numbers(element.attrib, "left top width height", where))
    runs = read_as(list[Size0], element.get("rle", "").split(","), where)
    is_inside = 0 <= left <= left + width <= size[0] and 0 <= top <= top + height <= size[1]
    if not is_inside or sum(runs) != width * height:
        what = f"rle: expected runs of {width}×{height} pixels of the image, got {sum(runs)} at {left}, {top}"
        raise DataError(what, where, "draw the mask again, or export as COCO")
    require_drawable(size, where)
    drawn = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return placed(drawn, left, top, size)


def _points(element: Element, where: str) -> tuple[str, list[Point]]:
    """What a shape is, and the points it extends to; none for points, lines and tags."""
    given, degrees = {"rotation": "0", **element.attrib}, 0.0
    if element.tag in ("box", "ellipse"):
        (degrees,) = numbers(given, "rotation", where)
    if element.tag == "box":
        x1, y1, x2, y2 = numbers(given, "xtl ytl xbr ybr", where)
        if not degrees % 360:
            return "box", [(x1, y1), (x2, y2)]
        centre = ((x1 + x2) / 2, (y1 + y2) / 2)
        return "rotated box", turned(corners(x1, y1, x2 - x1, y2 - y1), degrees, centre)
    if element.tag == "ellipse":
        cx, cy, rx, ry = numbers(given, "cx cy rx ry", where)
        return "ellipse", ellipse(cx, cy, rx, ry, degrees)
    if element.tag == "mask":
        return "mask", corners(*numbers(given, "left top width height", where))
    if element.tag == "cuboid":
        values = numbers(given, CUBOID, where)
        return "cuboid", list(zip(values[::2], values[1::2], strict=True))
    if element.tag == "polygon":
        written = [pair.split(",") for pair in given.get("points", "").split(";")]
        return "polygon", read_as(list[tuple[Number, Number]], written, where)
    return element.tag, []
