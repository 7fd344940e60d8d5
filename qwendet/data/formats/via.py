"""Annotations of the VGG Image Annotator, version 1 and 2: JSON, a saved project, or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from qwendet.data.formats.drawn import (
    Drawn,
    Number,
    Point,
    Row,
    Shape,
    corners,
    ellipse,
    numbers,
    paired,
    read_as,
    read_json,
)
from qwendet.data.formats.records import Item, or_problems
from qwendet.data.rows import FLAGS
from qwendet.errors import DataError
from qwendet.files import read_text

LABEL_NAMES = ("label", "class", "name", "category", "type", "object")
"""Attributes that are the label where a region has several, the likeliest first."""


class _Region(Row):
    shape_attributes: dict[str, Any]
    region_attributes: dict[str, Any] = Field(default_factory=dict)


class _Image(Row):
    filename: str
    regions: list[_Region] | dict[str, _Region] = Field(default_factory=list)


def read_via(file: Path) -> Iterator[Drawn | Item]:
    """Read a file of VIA; a region's label is its only attribute, or the one called as a label is."""
    try:
        images = list(_rows(file) if file.suffix.lower() == ".csv" else _members(file))
    except csv.Error as error:
        raise DataError(f"expected a table ({error})", str(file), "export it as JSON") from error
    for where, value in images:
        yield from or_problems(_drawn(value, where))


def _drawn(value: Any, where: str) -> Iterator[Drawn]:
    image = read_as(_Image, value, where)
    regions = image.regions.values() if isinstance(image.regions, dict) else image.regions
    numbered = enumerate(regions, start=1)
    yield Drawn(where, image.filename, [_shape(own, f"{where}: region {at}") for at, own in numbered])


def _members(file: Path) -> Iterator[tuple[str, Any]]:
    found = read_json(file)
    images = found.get("_via_img_metadata", found) if isinstance(found, dict) else {}
    yield from (
        (f"{file}: {key}", value) for key, value in read_as(dict[str, Any], images, str(file)).items()
    )


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV file by image; a row without a shape stands for an image without regions."""
    images: dict[str, tuple[str, dict[str, Any]]] = {}
    reader = csv.DictReader(io.StringIO(read_text(file)))
    for row in reader:
        where = f"{file}:{reader.line_num}"
        name = row.get("filename") or row.get("#filename") or ""
        _, image = images.setdefault(name, (where, {"filename": name, "regions": []}))
        try:
            shape = json.loads(row.get("region_shape_attributes") or "{}")
            attributes = json.loads(row.get("region_attributes") or "{}")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"expected JSON in the row's attributes ({error})", where, "export it again"
            ) from error
        if shape:
            image["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    yield from images.values()


def _shape(region: _Region, where: str) -> Shape:
    value = region.shape_attributes
    kind = value.get("name")
    points: list[Point] = []
    if kind == "rect":
        points = corners(*numbers(value, "x y width height", where))
    elif kind in ("circle", "ellipse"):
        given = {"rx": value.get("r"), "ry": value.get("r"), "theta": 0, **value}
        cx, cy, rx, ry, theta = numbers(given, "cx cy rx ry theta", where)
        points = ellipse(cx, cy, rx, ry, theta)
    elif kind == "polygon":
        xs, ys = (read_as(list[Number], value.get(f"all_points_{axis}"), where) for axis in "xy")
        points = paired(xs, ys, where)
    elif kind not in ("point", "polyline"):
        raise DataError(f"shape_attributes.name: expected a shape of VIA, got {kind!r}", where, "correct it")
    label = _label(region.region_attributes, where)
    return Shape(label, points, where, "box" if kind == "rect" else str(kind), region.region_attributes)


def _label(attributes: Mapping[str, Any], where: str) -> Any:
    """The value of the attribute that is the label; of a checkbox the choice that is made.

    Raises:
        DataError: if several may be it.
    """
    flags = {name for names in FLAGS.values() for name in names}
    given = {name.lower(): value for name, value in attributes.items() if value and name.lower() not in flags}
    name = next((name for name in (*LABEL_NAMES, *given) if name in given), "")
    if len(given) > 1 and name not in LABEL_NAMES:
        what = f"which of the attributes {', '.join(given)} is the label is not clear"
        raise DataError(what, where, f"call it {LABEL_NAMES[0]!r}")
    value = given.get(name)
    chosen = [choice for choice, is_made in value.items() if is_made] if isinstance(value, dict) else [value]
    if len(chosen) != 1:
        raise DataError(
            f"{name}: expected one choice, got {', '.join(map(str, chosen))}", where, "choose one"
        )
    return chosen[0]
