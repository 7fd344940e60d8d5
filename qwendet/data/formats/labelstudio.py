"""Label Studio's JSON export, task by task; coordinates are percent of the image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import AliasChoices, Field

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
from qwendet.data.formats.json_stream import records
from qwendet.data.formats.records import Finding, Item, or_problems
from qwendet.data.images import IMAGE_SUFFIXES
from qwendet.errors import DataError

MOST = 110
"""Percent; more is a pixel and no slip of the hand."""


class _Result(Row):
    type: str = ""
    id: str = ""
    from_name: str = ""
    value: dict[str, Any] = Field(default_factory=dict)
    original_width: Size | None = None
    original_height: Size | None = None
    image_rotation: Number = 0


class _Annotation(Row):
    result: list[_Result]
    was_cancelled: bool = False
    ground_truth: bool = False


class _Task(Row):
    data: dict[str, Any]
    annotations: list[_Annotation] = Field(validation_alias=AliasChoices("annotations", "completions"))


def read_labelstudio(file: Path) -> Iterator[Drawn | Item]:
    """Read the tasks of an export as "JSON"; predictions of a model in it do not count."""
    sets: dict[str, None] = {}
    for where, value in records(file):
        yield from or_problems(_drawn(value, where, sets))
    if len(sets) > 1:
        yield Finding("label_sets", str(file), ", ".join(map(repr, sets)))


def _drawn(value: Any, where: str, sets: dict[str, None]) -> Iterator[Drawn | Finding]:
    """Read a task; to ``sets`` are added the sets of labels that it uses."""
    task = read_as(_Task, value, where)
    own = [found for found in task.annotations if not found.was_cancelled]
    chosen = [found for found in own if found.ground_truth] or own
    if not chosen:
        yield Finding("no_annotation", where, "skipped" if task.annotations else "nobody annotated it")
        return
    if len(chosen) > 1:
        what = f"the task has {len(chosen)} annotations, and not one alone is marked as ground truth"
        raise DataError(what, where, "star the one that counts in Label Studio, or keep it alone")
    (annotation,) = chosen
    name = _image(task.data, where)
    regions: dict[str, list[_Result]] = defaultdict(list)
    for result in annotation.result:
        regions[result.id].append(result)
    shapes = [
        shape
        for number, found in enumerate(regions.values(), start=1)
        for shape in _shapes(found, f"{where}: region {number}")
    ]
    sizes = [(found.original_width, found.original_height) for found in annotation.result]
    size = next(((width, height) for width, height in sizes if width and height), None)
    plain = PurePosixPath(name).name.partition("-")[2]  # what an upload was called, behind its hash
    yield Drawn(where, name, shapes, size, in_fractions=True, other_name=plain)
    sets |= dict.fromkeys(found.from_name for found in annotation.result if _labels(found))


def _image(data: dict[str, Any], where: str) -> str:
    """The path of a task's image: of an upload, a local file, or a URL.

    Raises:
        DataError: unless there is exactly one.
    """
    found = {key: _path(value) for key, value in data.items() if isinstance(value, str)}
    images = {
        key: path for key, path in found.items() if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES
    }
    if len(images) != 1 and "image" not in images:
        what = f"expected one image in data, got {', '.join(images) or 'none'}"
        raise DataError(what, where, 'call it "image", with the ending of its file')
    return images["image"] if "image" in images else next(iter(images.values()))


def _path(value: str) -> str:
    parts = urlsplit(value) if "/" in value else None
    if parts is None or (parts.scheme and not parts.path):
        return value
    served = parse_qs(parts.query).get("d", [""])[0]  # /data/local-files/?d=images/a.jpg
    return (served or parts.path).lstrip("/")


def _labels(result: _Result) -> list[Any]:
    found = result.value.get(result.type) if result.type.endswith("labels") else None
    return found if isinstance(found, list) else []


def _shapes(region: Sequence[_Result], where: str) -> list[Shape]:
    """The shape of a region; none for what is about the whole image.

    Raises:
        DataError: if several labels were given to it, or its coordinates are no percent.
    """
    labels = dict.fromkeys(str(label) for found in region for label in _labels(found))
    choices = [found.value.get("choices") for found in region if found.type == "choices"]
    flags = {str(choice): True for given in choices if isinstance(given, list) for choice in given}
    drawn = next((found for found in region if {"x", "points", "rle", "sequence"} & found.value.keys()), None)
    if drawn is None:
        return []
    if len(labels) > 1:
        what = f"the region has {len(labels)} labels: {', '.join(labels)}"
        raise DataError(
            what, where, "keep the one to be found; only one set of labels can be trained at once"
        )
    if drawn.image_rotation % 360:
        what = f"the image was turned by {drawn.image_rotation:g}° in the editor"
        raise DataError(what, where, "turn the file itself, and draw its boxes again")
    kind = drawn.type.removesuffix("labels")
    return [Shape(next(iter(labels), None), _points(kind, drawn, where), where, _kind(kind, drawn), flags)]


def _kind(kind: str, drawn: _Result) -> str:
    is_turned = bool(drawn.value.get("rotation"))
    return ("rotated box" if is_turned else "box") if kind == "rectangle" else kind


def _points(kind: str, drawn: _Result, where: str) -> list[Point]:
    """The points that a shape extends to, in fractions of the image; none for key points."""
    value = {"rotation": 0, **drawn.value}
    width, height = drawn.original_width or 100, drawn.original_height or 100
    if kind in ("keypoint", "vector"):
        return []
    if kind == "polygon":
        points = read_as(list[tuple[Number, Number]], value.get("points"), where)
    elif kind == "rectangle":
        x, y, across, down, degrees = numbers(value, "x y width height rotation", where)
        scaled = [(right * width, low * height) for right, low in corners(x, y, across, down)]
        points = [(right / width, low / height) for right, low in turned(scaled, degrees, scaled[0])]
    elif kind == "ellipse":
        x, y, rx, ry, degrees = numbers(value, "x y radiusX radiusY rotation", where)
        extent = ellipse(x * width, y * height, rx * width, ry * height, degrees)
        points = [(right / width, low / height) for right, low in extent]
    else:
        raise DataError(
            f"a region of the type {drawn.type!r} is not read", where, "draw a box, or export as COCO"
        )
    beyond = next((number for point in points for number in point if abs(number) > MOST), None)
    if beyond is not None:
        raise DataError(
            f"expected percent of the image, 0 to 100, got {beyond:g}", where, "divide pixels by its size"
        )
    return [(x / 100, y / 100) for x, y in points]
