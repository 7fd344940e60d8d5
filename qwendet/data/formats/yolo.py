"""YOLO labels, image by image as written; fractions of the displayed image become its pixels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path

from qwendet.data.formats.fitting import show
from qwendet.data.formats.records import MEASURED, Finding, Item, Labels, Record, Source, or_problems
from qwendet.data.formats.tools import foreign
from qwendet.data.formats.yolo_files import images_of, label_places, labels_without_image, tails
from qwendet.data.formats.yolo_layout import YoloLayout, find_yolo
from qwendet.data.formats.yolo_rows import (
    FRACTION_LIMIT,
    are_polygons,
    corners_of,
    is_long,
    numbered_lines,
    numbers_of,
)
from qwendet.data.images import image_size
from qwendet.data.samples import DetectedObject, Turn
from qwendet.errors import DataError, Problem

FLAGS_FILE = "flags.jsonl"
"""Beside the settings: ``crowd`` and ``difficult``, which YOLO's lines cannot hold, by ``data convert``."""
DECIMALS = 4
"""Places that pixels are rounded to: fractions are not exact."""
MAX_LINES = 20
"""Lines of lists that are named where none leads to an image."""

Flags = Mapping[str, Mapping[str, list[int]]]


def open_yolo(path: Path, image_dir: Path | None = None) -> Source:
    """Open a YOLO data set; its images are opened for their sizes, which YOLO does not record."""
    layout = find_yolo(path, image_dir)
    root = image_dir or layout.root
    entries = {
        (split, entry): images_of(layout.root, root, entry)
        for split, entries in layout.entries.items()
        for entry in entries
    }
    if not any(found.names for found in entries.values()):
        lines = [note for found in entries.values() for note in found.notes if isinstance(note, Problem)]
        none = Problem("there is no image", str(root), "give the folder of the images with --image-dir")
        raise DataError.of([none, *lines[: MAX_LINES - 1]])

    def items() -> Iterator[Item]:
        reader = _Reader(layout, root, (pair for found in entries.values() for pair in found.names.items()))
        names = [layout.names[index] for index in sorted(layout.names)]
        yield Labels(tuple(dict.fromkeys(names)))
        for name, count in Counter(names).items():
            if count > 1:
                yield Finding("same_label", str(layout.settings), repr(name))
        for problem in layout.absent:
            yield Finding("no_split", problem.where, problem.what)
        for (split, entry), found in entries.items():
            if not found.names:
                yield Finding("no_split", f"{layout.settings}: {split}", f"there is no image in {entry!r}")
            yield from found.notes
            for image in found.names:
                yield from or_problems(reader.record(split, entry, image))
        yield from reader.orphans(entry for _, entry in entries)
        if not any(reader.files.values()):
            what, fix = foreign(layout.root) or ("", "expected labels/ beside images/")
            but = f", but there are {what}: not read" if what else ""
            raise DataError(f"no image has a label file{but}", str(layout.root), fix)

    return Source(root, sum(len(found.names) for found in entries.values()), items())


class _Reader:
    """Reads images with their labels; ``images`` has what a list calls each."""

    def __init__(self, layout: YoloLayout, root: Path, images: Iterable[tuple[str, str]]) -> None:
        self.layout = layout
        self.root = root
        self.files = {image: self._find(image, listed) for image, listed in images}
        self.owners: dict[Path, str] = {}
        self.flags = _read_flags(layout.root / FLAGS_FILE)

    def _due(self, image: str) -> Iterator[Path]:
        """Where the labels of an image ought to be: in ``a.txt``, else in ``a.jpg.txt``."""
        for name in (image, f"{image}.txt"):
            yield from label_places(self.layout.root, name)[:2]
            yield label_places(self.root, name)[1]

    def _find(self, image: str, listed: str) -> Path | None:
        """The label file of an image, by its own path or by what a list calls it."""
        names = (image, f"{image}.txt", *(tails(listed) if listed != image else ()))
        others = (place for name in names for place in label_places(self.layout.root, name))
        places = chain(self._due(image), others)
        candidates = (path.with_suffix(suffix) for path in places for suffix in (".txt", ".TXT"))
        return next((path for path in candidates if path.is_file()), None)

    def _label_file(self, image: str) -> Path | None:
        """The label file of an image; one in a common folder that is another image's, too, is refused."""
        file = self.files[image]
        if file is not None:
            owner = self.owners.setdefault(file, image)
            if owner != image and file.with_suffix(".txt") not in self._due(image):
                what = f"{owner!r} and {image!r} both would have these labels"
                raise DataError(what, str(file), "give the labels of each split a folder of their own")
        return file

    def record(self, split: str, entry: str, image: str) -> Iterator[Record]:
        file = self._label_file(image)
        where = str(file or self.root / image)
        size = image_size(image, self.root, where)
        objects: dict[str, DetectedObject] = {}  # by their places
        for number, line in numbered_lines(file) if file else ():
            found = self._flagged(self._parse_line(line, f"{where}:{number}", size), file, number)
            objects[f"{where}:{number} ({found.desc})"] = found
        drawn = ((place, own) for place, own in objects.items() if own.segmentation is not None)
        findings = [Finding("derived", place, show(own.bbox_2d)) for place, own in drawn]
        if file is None:
            findings.append(Finding("unlabelled", where))
        name = image.removeprefix(f"{entry}/").removeprefix("images/")
        turn = Turn(image, tuple(objects.values()), *size)
        yield Record(split, turn, where, name, tuple(objects), tuple(findings), size=MEASURED)

    def _parse_line(self, line: str, where: str, size: tuple[int, int]) -> DetectedObject:
        """The object of a line, in pixels."""
        layout = self.layout
        index, *values = numbers_of(line, where)
        if not index.is_integer() or int(index) not in layout.names:
            raise DataError(
                f"the class index {index:g} is not among the {len(layout.names)} names",
                where,
                f"correct it, or add the name to {layout.settings.name}",
            )
        if layout.columns and len(values) == 4 + layout.columns:
            values = values[:4]
        if any(abs(value) > FRACTION_LIMIT for value in values[:4]):
            raise DataError(
                f"expected fractions of the image from 0 to 1, got {line.strip()[:60]!r}",
                where,
                "divide pixels by its size",
            )
        box, ring = corners_of(values, where, polygons=is_long(values) and self.polygons)
        x1, y1, x2, y2 = _pixels(box, size)
        found = DetectedObject((x1, y1, x2, y2), layout.names[int(index)])
        return replace(found, segmentation=(_pixels(ring, size),)) if ring else found

    @cached_property
    def polygons(self) -> bool:
        """Whether long lines are polygons, by what the settings say, or by those of all label files."""
        if self.layout.is_segmented:
            return True
        return are_polygons(file for file in self.files.values() if file is not None)

    def _flagged(self, found: DetectedObject, file: Path | None, number: int) -> DetectedObject:
        if not self.flags or file is None:
            return found
        own = self.flags.get(file.relative_to(self.layout.root).as_posix(), {})
        flags = {flag: number in own.get(flag, []) for flag in ("crowd", "difficult")}
        return replace(found, **flags)  # type: ignore[arg-type]

    def orphans(self, entries: Iterable[str]) -> list[Problem]:
        """Label files whose image is not there; its size, and so its boxes, nobody knows."""
        owned = {file for file in self.files.values() if file is not None}
        files = (file for entry in entries for file in labels_without_image(self.layout.root, entry, owned))
        return [
            Problem("the image of these labels is absent", str(file), "add the image or remove the labels")
            for file in dict.fromkeys(files)
        ]


def _pixels(fractions: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    return tuple(round(value * size[at % 2], DECIMALS) for at, value in enumerate(fractions))


def _read_flags(file: Path) -> Flags:
    if not file.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {
            line["labels"]: {key: list(line.get(key, [])) for key in ("crowd", "difficult")} for line in lines
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"expected flags as data convert writes them, got a broken file ({error})", str(file), "remove it"
        ) from error
