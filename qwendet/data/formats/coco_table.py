"""A COCO file, whatever the order of its lists: annotations are found first, and read with their image.

In memory are the images, the categories and 32 bytes a box: whose it is, and where in the file.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwendet.data.formats.fitting import show
from qwendet.data.formats.json_stream import stream_lists
from qwendet.data.formats.records import Box, Finding
from qwendet.data.formats.tools import foreign
from qwendet.data.samples import DetectedObject, check_label, parse_frequency
from qwendet.data.segmentation import Segmentation, extent, read_rings, read_rle
from qwendet.errors import DataError, Problem, expect

Key = int | str
"""COCO's ids are numbers; some tools write them as texts, perhaps in one list and not in the other."""

DECIMALS = 4
"""Places that corners are rounded to: COCO holds sizes, and x + width is not exact."""
OTHER_TASKS = {"caption": "captions", "segments_info": "panoptic segmentation"}
"""Keys of annotations that COCO's files of other tasks have."""
CATEGORY_FIX = "correct category_id, or add the category"
CANONICAL = re.compile("0|-?[1-9][0-9]{0,17}")
"""A whole number as it is written: 1 and not 01."""


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of ``images``: its name, and the size that it claims (None where it claims none).

    Attributes:
        absent: LVIS ``neg_category_ids``; ``None`` where annotations are not federated.
        partial: LVIS ``not_exhaustive_category_ids``.
    """

    name: str
    width: int | None
    height: int | None
    where: str
    absent: tuple[Key, ...] | None = None
    partial: tuple[Key, ...] | None = None


class CocoTable:
    """What a COCO file holds.

    Attributes:
        labels: label by category id.
        frequencies: LVIS's, by label.
        images: entry by id, in the order of the file.
        broken: what is wrong with the entry of an image, by id.
        problems: what is wrong with annotations of no image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: dict[Key, str] = {}
        self.frequencies: dict[str, str | None] = {}
        self.images: dict[Key, CocoImage] = {}
        self.broken: dict[Key, Problem] = {}
        self.problems: list[Problem] = []
        self.findings: list[Finding] = []
        self.num_annotations = 0
        self._numbers: dict[Key, int] = {}  # of images that annotations name
        self._places = array("q")  # of each annotation: number of its image, index, first byte and the end

    def add_image(self, index: int, entry: Any) -> None:
        """Take an element of ``images``."""
        where = f"{self.path}: images[{index}]"
        key: Key | None = None
        try:
            key = key_of(entry, "id", where)
            image = read_image(entry, where)
            if key in self.images:
                raise DataError(
                    f"the image id {entry['id']!r} is that of {self.images[key].name!r} too",
                    where,
                    "give each image an id of its own: else nobody knows whose its annotations are",
                )
            self.images[key] = image
        except DataError as error:
            if key is None:
                self.problems += error.problems
            else:
                self.broken.setdefault(key, error.problems[0])

    def add_category(self, index: int, entry: Any) -> None:
        """Take an element of ``categories``; a broken one refuses the file."""
        where = f"{self.path}: categories[{index}]"
        key = key_of(entry, "id", where)
        name = entry.get("name")
        name = str(name) if type(name) is int else name  # some data sets have digits as labels
        label = check_label(name.strip() if isinstance(name, str) else name, where, "name")
        if key in self.labels and self.labels[key] != label:
            raise DataError(
                f"the category id {key!r} is that of {self.labels[key]!r} too",
                where,
                "give it an id of its own",
            )
        if label in self.labels.values():
            self.findings.append(Finding("same_label", where, repr(label)))
        self.labels[key] = label
        self.frequencies[label] = parse_frequency(entry.get("frequency"), where, "frequency")

    def add_annotation(self, index: int, entry: Any, start: int, end: int) -> None:
        """Take an element of ``annotations``, bytes of the file; one of another task refuses the file."""
        where = self._where(index)
        self.num_annotations += 1
        _refuse_other_task(entry, where)
        try:
            key = key_of(entry, "image_id", where)
        except DataError as error:
            self.problems += error.problems
        else:
            self._places.extend((self._numbers.setdefault(key, len(self._numbers)), index, start, end))

    def finish(self) -> None:
        """Judge what only the whole file can tell: annotations of no image."""
        known = self.images.keys() | self.broken.keys()
        strays = {number: key for key, number in self._numbers.items() if key not in known}
        for number, index, *_ in self._rows().tolist() if strays else ():
            if number in strays:
                what = f"there is no image with the id {strays[number]!r}"
                fix = "add the image or remove the annotation"
                self.problems.append(Problem(what, self._where(index), fix))

    def _where(self, index: int) -> str:
        return f"{self.path}: annotations[{index}]"

    def _rows(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self._places, np.int64).reshape(-1, 4)

    def annotations(self) -> Iterator[tuple[CocoImage, list[tuple[str, dict[str, Any]]]]]:
        """Each image, in the order of the file, with place and content of its annotations."""
        rows = self._rows()
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        starts = np.searchsorted(rows[:, 0], np.arange(len(self._numbers) + 1))
        with self.path.open("rb") as file:

            def content(start: int, end: int) -> dict[str, Any]:
                file.seek(start)
                found: dict[str, Any] = json.loads(file.read(end - start))
                return found

            for key, image in self.images.items():
                number = self._numbers.get(key)
                own = [] if number is None else rows[starts[number] : starts[number + 1]].tolist()
                if key not in self.broken:
                    yield image, [(self._where(index), content(*place)) for _, index, *place in own]

    def read(self, entry: dict[str, Any], where: str) -> tuple[DetectedObject, list[Finding]]:
        """The object of an annotation; what is drawn and cannot be read is left out where there is a box."""
        (label,) = self.named([key_of(entry, "category_id", where)], where)
        findings: list[Finding] = []
        segmentation = None
        try:
            segmentation = _segmentation(entry.get("segmentation"), where)
        except DataError as error:
            if not entry.get("bbox"):
                raise
            findings.append(Finding("unreadable", where, error.problems[0].what))
        box, is_derived = read_box(entry, segmentation, where)
        if is_derived:
            findings.append(Finding("derived", f"{where} ({label})", show(box)))
        crowd, difficult, ignore = (_flag(entry, name, where) for name in ("iscrowd", "difficult", "ignore"))
        item = DetectedObject(
            box,
            label,
            crowd,
            difficult or ignore,
            _area(entry, where),
            segmentation,
            self.frequencies[label],
        )
        return item, findings

    def named(self, ids: Sequence[Key], where: str) -> tuple[str, ...]:
        """Labels of category ids, each once.

        Raises:
            DataError: for an id that no category has.
        """
        if unknown := [key for key in ids if key not in self.labels]:
            what = f"there is no category with the id {unknown[0]!r}"
            raise DataError(what, where, "correct category_id, or add the category")
        return tuple(dict.fromkeys(self.labels[key] for key in ids))


def read_table(path: Path) -> CocoTable:
    """Read a COCO file.

    Raises:
        DataError: if it is no COCO file, or its categories are broken. Other mistakes are in the table.
    """
    table = CocoTable(path)
    values: dict[str, Any] = {}
    for key, index, element, *place in stream_lists(path):
        if index == -1:
            values[key] = element
        elif index >= 0 and key == "images":
            table.add_image(index, element)
        elif index >= 0 and key == "categories":
            table.add_category(index, element)
        elif index >= 0 and key == "annotations":
            table.add_annotation(index, element, *place)
    if "annotations" not in values:
        other, fix = foreign(path) or ("", "give a COCO file")
        but = f", but there is {other}: not read" if other else ""
        raise DataError(f'expected a list "annotations" at the top of the file{but}', str(path), fix)
    for key in ("images", "categories", "annotations"):
        if not isinstance(value := values.get(key, []), list):
            found = "an object" if isinstance(value, dict) else "null" if value is None else "something else"
            fix = f'write "{key}": [{{"id": …}}, …]: the keys of an object are the ids'
            raise DataError(f'expected a list "{key}", got {found}', f"{path}: {key}", fix)
    if table.num_annotations and not table.images and not table.broken:
        what = 'expected a list "images" of objects, such as {"id": 1, "file_name": "a.jpg"}, and got none'
        raise DataError(what, f"{path}: images", "give a COCO file")
    table.finish()
    return table


def key_of(entry: Any, name: str, where: str) -> Key:
    """An id of an entry; a number that is written as a text is a number."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        found = repr(value) if isinstance(entry, dict) else f"the element {entry!r:.60}"
        raise DataError(f"{name}: expected a number or a text, got {found}", where, "correct it")
    return int(value) if isinstance(value, str) and CANONICAL.fullmatch(value) else value


def _as_number(value: Any) -> Any:
    """The number that a text stands for; anything else as it is."""
    with suppress(ValueError):
        if isinstance(value, str):
            return int(value) if CANONICAL.fullmatch(value) else float(value)
    return value


def _refuse_other_task(entry: Any, where: str) -> None:
    task = next((OTHER_TASKS[key] for key in OTHER_TASKS if isinstance(entry, dict) and key in entry), None)
    if task is not None and "bbox" not in entry:
        raise DataError(f"this is a COCO file of {task}, without boxes", where, "give the instances_… file")


def read_image(entry: Mapping[str, Any], where: str) -> CocoImage:
    """An element of ``images``."""
    name = entry.get("file_name")
    if name is None and isinstance(url := entry.get("coco_url"), str):  # LVIS: …org/train2017/1.jpg
        name = url.partition("://")[2].partition("/")[2]
    is_path = isinstance(name, str) and name.strip() != ""
    expect(is_path, "file_name", "a path", name, where, "name the image's file")
    width, height = (_size(entry, side, where) for side in ("width", "height"))
    return CocoImage(
        str(name),
        width,
        height,
        where,
        *(_ids(entry, key, where) for key in ("neg_category_ids", "not_exhaustive_category_ids")),
    )


def _ids(entry: Mapping[str, Any], name: str, where: str) -> tuple[Key, ...] | None:
    values = entry.get(name)
    expect(values is None or isinstance(values, list), name, "a list of ids", values, where, "correct it")
    return None if values is None else tuple(key_of({name: value}, name, where) for value in values)


def _size(entry: Mapping[str, Any], side: str, where: str) -> int | None:
    value = _as_number(entry.get(side))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (type(value) is int and value == 0):
        return None
    expect(type(value) is int and 0 < value < 1e9, side, "pixels", value, where, "correct it")
    return int(value)


def read_box(entry: Mapping[str, Any], segmentation: Segmentation | None, where: str) -> tuple[Box, bool]:
    """A box as xyxy, and whether it comes from a polygon or a mask."""
    bbox = entry.get("bbox")
    if bbox is None or bbox == []:
        box = None if segmentation is None else extent(segmentation)
        drawn, fix = entry.get("segmentation"), "draw the box or remove it"
        expect(box is not None, "", "a bbox or a segmentation", drawn, where, fix)
        assert box is not None
        return box, True
    bbox = [_as_number(value) for value in bbox] if isinstance(bbox, list) else bbox
    is_box = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))
    expect(is_box, "bbox", "[x, y, width, height]", bbox, where, "write four finite numbers")
    x, y, width, height = bbox
    fix = "x and y are those of the upper left corner"
    expect(min(width, height) >= 0, "bbox", "width and height of at least 0", bbox, where, fix)
    return (x, y, round(x + width, DECIMALS), round(y + height, DECIMALS)), False


def _area(entry: Mapping[str, Any], where: str) -> float | None:
    """The object's own area; tools that do not compute it write 0 or nothing."""
    value = entry.get("area")
    is_area = value is None or (_is_number(value) and value >= 0)
    expect(is_area, "area", "square pixels", value, where, "correct it or leave it out")
    return float(value) if value else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def _segmentation(value: Any, where: str) -> Segmentation | None:
    if isinstance(value, dict) and value:
        return read_rle(value, where, "segmentation")
    rings = value if isinstance(value, list) and any(isinstance(ring, list) for ring in value) else [value]
    rings = [ring for ring in rings if ring]
    if any(isinstance(ring, list) and str in map(type, ring) for ring in rings):
        rings = [[*map(_as_number, ring)] if isinstance(ring, list) else ring for ring in rings]
    return read_rings(rings, where, "segmentation") if rings else None


def _flag(entry: Mapping[str, Any], name: str, where: str) -> bool:
    value = _as_number(entry.get(name))
    expect(value in (None, 0, 1), name, "0 or 1", value, where, "correct it or leave it out")
    return bool(value)
