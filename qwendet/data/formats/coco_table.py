"""A COCO file in memory, 80 bytes a box: read in one pass, whatever the order of its lists.

Polygons and masks wait in a temporary file, if there are more than fit into ``MEMORY``.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qwendet.data.formats.json_stream import stream_lists
from qwendet.data.formats.records import Box, Finding
from qwendet.data.formats.tools import foreign
from qwendet.data.formats.writer import as_coco
from qwendet.data.samples import DetectedObject, check_label, parse_frequency
from qwendet.data.segmentation import Rle, Segmentation, extent, read_rings, read_rle
from qwendet.errors import DataError, Problem, expect

Key = int | str
"""COCO's ids are numbers; some tools write them as texts, perhaps in one list and not in the other."""

CROWD, DIFFICULT, DERIVED = 1, 2, 4
IMAGE, CATEGORY, COLUMNS = 0, 1, 10
"""Of a box's row: slot of its image, number of its category, index in ``annotations``, flags, corners, area
(NaN without), place of its polygons or mask in :class:`_Drawings` (-1 without)."""
MEMORY = 1 << 24
"""Bytes of polygons and masks that are held."""
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


@dataclass
class CocoTable:
    """What a COCO file holds.

    Attributes:
        labels: label by category id.
        frequencies: LVIS's, by label.
        images: entry by slot, in the order of the file; a slot stands for an image id.
        broken: what is wrong with an image's entry or one of its annotations, by slot.
        problems: what is wrong with annotations of no image.
    """

    path: Path
    labels: dict[Key, str] = field(default_factory=dict)
    frequencies: dict[str, str | None] = field(default_factory=dict)
    images: dict[int, CocoImage] = field(default_factory=dict)
    broken: dict[int, Problem] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    _slots: dict[Key, int] = field(default_factory=dict)
    _categories: dict[Key, int] = field(default_factory=dict)
    _values: array[float] = field(default_factory=lambda: array("d"))
    _drawings: _Drawings = field(default_factory=lambda: _Drawings())

    @property
    def num_annotations(self) -> int:
        """Elements of ``annotations``, broken ones included."""
        return len(self._values) // COLUMNS + len(self.problems)

    def image_ids(self) -> dict[int, Key]:
        """The id of each image, by its slot."""
        return {slot: key for key, slot in self._slots.items()}

    def add_image(self, index: int, entry: Any) -> None:
        """Take an element of ``images``."""
        where = f"{self.path}: images[{index}]"
        slot = -1
        try:
            slot = self._slots.setdefault(key_of(entry, "id", where), len(self._slots))
            image = read_image(entry, where)
            if slot in self.images:
                raise DataError(
                    f"the image id {entry['id']!r} is that of {self.images[slot].name!r} too",
                    where,
                    "give each image an id of its own: else nobody knows whose its annotations are",
                )
            self.images[slot] = image
        except DataError as error:
            self._refuse(slot, error)

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

    def named(self, ids: Sequence[Key] | None, where: str) -> tuple[str, ...] | None:
        """Labels of category ids, each once.

        Raises:
            DataError: for an id that no category has.
        """
        if unknown := [key for key in ids or () if key not in self.labels]:
            what = f"there is no category with the id {unknown[0]!r}, which the image names"
            raise DataError(what, where, CATEGORY_FIX)
        return None if ids is None else tuple(dict.fromkeys(self.labels[key] for key in ids))

    def add_annotation(self, index: int, entry: Any) -> None:
        """Take an element of ``annotations``; one of another task refuses the file."""
        where = f"{self.path}: annotations[{index}]"
        _refuse_other_task(entry, where)
        slot = -1
        try:
            slot = self._slots.setdefault(key_of(entry, "image_id", where), len(self._slots))
            category = key_of(entry, "category_id", where)
            segmentation = self._segmentation(entry, where)
            box, flags = read_box(entry, segmentation, where)
            area = _area(entry, where)
            flags |= CROWD * _flag(entry, "iscrowd", where)
            flags |= DIFFICULT * (_flag(entry, "difficult", where) | _flag(entry, "ignore", where))
        except DataError as error:
            self._refuse(slot, error)
            return
        number = self._categories.setdefault(category, len(self._categories))
        place = -1 if segmentation is None else self._drawings.put(segmentation)
        own_area = math.nan if area is None else area
        self._values.extend((slot, number, index, flags, *box, own_area, place))

    def _segmentation(self, entry: Mapping[str, Any], where: str) -> Segmentation | None:
        """What is drawn beside the box; what cannot be read is left out where there is a box."""
        try:
            return _segmentation(entry.get("segmentation"), where)
        except DataError as error:
            if not entry.get("bbox"):
                raise
            self.findings.append(Finding("unreadable", where, error.problems[0].what))
            return None

    def _refuse(self, slot: int, error: DataError) -> None:
        """Note a problem: with its image, of which the first is enough, or with none."""
        if slot < 0:
            self.problems.extend(error.problems)
        else:
            self.broken.setdefault(slot, error.problems[0])

    def finish(self) -> None:
        """Judge what only the whole file can tell: ids that nothing has."""
        rows = self._rows()
        unknown = {number: key for key, number in self._categories.items() if key not in self.labels}
        for slot, number, index in rows[np.isin(rows[:, CATEGORY], list(unknown)), :3].astype(int).tolist():
            what = f"there is no category with the id {unknown[number]!r}"
            self.broken.setdefault(slot, Problem(what, self._where(index), CATEGORY_FIX))
        known = self.images.keys() | self.broken.keys()
        strays = {slot: key for slot, key in self.image_ids().items() if slot not in known}
        for slot, _, index in rows[np.isin(rows[:, IMAGE], list(strays)), :3].astype(int).tolist():
            what = f"there is no image with the id {strays[slot]!r}"
            self.problems.append(Problem(what, self._where(index), "add the image or remove the annotation"))

    def _where(self, index: int) -> str:
        return f"{self.path}: annotations[{index}]"

    def _rows(self) -> npt.NDArray[np.float64]:
        return np.frombuffer(self._values, np.float64).reshape(-1, COLUMNS)

    def boxes_by_image(self) -> Iterator[tuple[int, list[CocoBox]]]:
        """Slot and boxes of each image that has an entry, in the order of the file."""
        rows = self._rows()
        order = np.argsort(rows[:, IMAGE], kind="stable")
        starts = np.searchsorted(rows[order, IMAGE], np.arange(len(self._slots) + 1))
        labels = [self.labels.get(key, "") for key in self._categories]
        for slot in self.images:
            if slot not in self.broken:
                own = rows[order[starts[slot] : starts[slot + 1]]].tolist()
                yield slot, [self._box(labels, row) for row in own]

    def _box(self, labels: Sequence[str], row: Sequence[float]) -> CocoBox:
        _, number, index, own_flags, x1, y1, x2, y2, area, own_place = row
        label, flags, place = labels[int(number)], int(own_flags), int(own_place)
        item = DetectedObject(
            (x1, y1, x2, y2),
            label,
            bool(flags & CROWD),
            bool(flags & DIFFICULT),
            None if math.isnan(area) else area,
            None if place < 0 else self._drawings.get(place),
            self.frequencies[label],
        )
        return CocoBox(item, f"{self._where(int(index))} ({label})", bool(flags & DERIVED))


class _Drawings:
    """Polygons and masks, in a temporary file where they are many."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(MEMORY)  # noqa: SIM115

    def __del__(self) -> None:
        self._file.close()

    def put(self, found: Segmentation) -> int:
        """Put one down; returns its place."""
        try:
            place = self._file.seek(0, 2)
            self._file.write(json.dumps(as_coco(found)).encode() + b"\n")
        except OSError as error:
            what = f"the polygons need room for temporary files ({error.strerror})"
            raise DataError(what, gettempdir(), "make room, or set TMPDIR to another folder") from error
        return place

    def get(self, place: int) -> Segmentation:
        """What was put down there."""
        self._file.seek(place)
        found = json.loads(self._file.readline())
        if isinstance(found, list):
            return tuple(map(tuple, found))
        (height, width), counts = found["size"], found["counts"]
        return Rle(height, width, counts if isinstance(counts, str) else tuple(counts))


class CocoBox(NamedTuple):
    """An object, its place in the file, and whether its box is that of its polygons or mask."""

    item: DetectedObject
    where: str
    is_derived: bool


def read_table(path: Path) -> CocoTable:
    """Read a COCO file.

    Raises:
        DataError: if it is no COCO file, or its categories are broken. Other mistakes are in the table.
    """
    table = CocoTable(path)
    takers = {
        "images": table.add_image,
        "categories": table.add_category,
        "annotations": table.add_annotation,
    }
    begins: dict[str, str] = {}
    for key, index, element in stream_lists(path):
        if index == -1:
            begins[key] = element
        elif index >= 0 and key in takers:
            takers[key](index, element)
    if "annotations" not in begins:
        other, fix = foreign(path) or ("", "give a COCO file")
        but = f", but there is {other}: not read" if other else ""
        raise DataError(f'expected a list "annotations" at the top of the file{but}', str(path), fix)
    for key in takers:
        if (begin := begins.get(key, "[")) != "[":
            found = {"{": "an object", "n": "null"}.get(begin, "something else")
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


def read_box(entry: Mapping[str, Any], segmentation: Segmentation | None, where: str) -> tuple[Box, int]:
    """A box as xyxy, and ``DERIVED`` if it comes from a polygon or a mask."""
    bbox = entry.get("bbox")
    if bbox is None or bbox == []:
        box = None if segmentation is None else extent(segmentation)
        drawn, fix = entry.get("segmentation"), "draw the box or remove it"
        expect(box is not None, "", "a bbox or a segmentation", drawn, where, fix)
        assert box is not None
        return box, DERIVED
    bbox = [_as_number(value) for value in bbox] if isinstance(bbox, list) else bbox
    is_box = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))
    expect(is_box, "bbox", "[x, y, width, height]", bbox, where, "write four finite numbers")
    x, y, width, height = bbox
    fix = "x and y are those of the upper left corner"
    expect(min(width, height) >= 0, "bbox", "width and height of at least 0", bbox, where, fix)
    return (x, y, round(x + width, DECIMALS), round(y + height, DECIMALS)), 0


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


def _flag(entry: Mapping[str, Any], name: str, where: str) -> int:
    value = _as_number(entry.get(name))
    expect(value in (None, 0, 1), name, "0 or 1", value, where, "correct it or leave it out")
    return int(value or 0)
