"""What one pass over a sample file saw: counts, labels, images and boxes as numbers."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from qwendet.checks.config.samples import Split
from qwendet.data.formats.records import Format
from qwendet.data.samples import SampleSource
from qwendet.errors import Problem

BOX_COLUMNS = 7


class SeenImage(NamedTuple):
    """A use of an image.

    Attributes:
        line: number of the sample, from 1.
        file_id: device and inode, or the path where the image was not opened.
        num_bytes: size of the file; 0 where it was not opened.
        size: displayed width and height in pixels; None if unknown.
        is_demonstration: it stands in front of the image that is asked about.
        answer: a number that differs where the objects differ.
        labels: one that differs where something else is asked; 0 for the label set.
    """

    line: int
    image: str
    path: str
    file_id: object
    num_bytes: int
    size: tuple[int, int] | None
    is_demonstration: bool
    answer: int
    labels: int = 0


@dataclass
class LabelUse:
    """Where a label was first seen, and how many boxes of student turns have it."""

    where: str
    num_boxes: int = 0


@dataclass
class SplitStats:
    """What one pass over a sample file saw.

    Attributes:
        path: the file, or the annotated data set.
        source: its samples, where they are ours.
        split: the split of that data set; empty for a file.
        format: the format of either, which says how its boxes are written.
        places: where each sample of a data set is written.
        num_samples: samples in it, broken ones included.
        num_parsed: those that can be read.
        num_usable: those that no finding of ``LEAVES_OUT`` speaks against.
        num_boxes: boxes to be trained on, of student turns.
        num_negatives: student turns without boxes.
        asked: labels that samples name themselves, and where the first does.
        boxes: x1, y1, x2, y2 as written, width and height of the image (0 if unknown) and line of each box of
            student turns, also of lines that are no sample.
        lines: first line of each different sample text, by its digest.
        repeated: lines that repeat an earlier one, and that one.
        num_forbidden: images that may not be read.
    """

    path: Path
    split: str = ""
    format: Format = "jsonl"
    source: SampleSource | None = None
    places: list[str] = field(default_factory=list)
    num_samples: int = 0
    num_parsed: int = 0
    num_usable: int = 0
    num_boxes: int = 0
    num_negatives: int = 0
    num_with_teachers: int = 0
    labels: dict[str, LabelUse] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    images: list[SeenImage] = field(default_factory=list)
    boxes: array[float] = field(default_factory=lambda: array("f"))
    lines: dict[bytes, int] = field(default_factory=dict)
    repeated: list[tuple[int, int]] = field(default_factory=list)
    num_absent: int = 0
    num_forbidden: int = 0
    first_absent: Problem | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        name = self.path.name or self.path.resolve().name
        return f"{self.split} of {name}" if self.split else name

    def where(self, line: int) -> str:
        """Where a sample is written: file and line, or its annotation."""
        return self.places[line - 1] if self.source is None else self.source.where(line - 1)

    def add(self, other: SplitStats) -> None:
        """Take in what was seen of the next piece of the file."""
        for name in (own.name for own in fields(self) if own.name.startswith("num_")):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for label, use in other.labels.items():
            self.labels.setdefault(label, LabelUse(use.where)).num_boxes += use.num_boxes
        self.asked = other.asked | self.asked
        self.images += other.images
        self.boxes.extend(other.boxes)
        for digest, line in other.lines.items():
            self.add_line(digest, line)
        self.repeated += other.repeated
        self.first_absent = self.first_absent or other.first_absent

    def add_line(self, digest: bytes, line: int) -> None:
        """Note a sample's text; that of a repeated one is noted as such."""
        first = self.lines.setdefault(digest, line)
        if first != line:
            self.repeated.append((line, first))


def sizes_of(splits: Mapping[Split, SplitStats]) -> dict[tuple[Split, str], tuple[int, int]]:
    """Displayed size of every image where it is known, by split and name."""
    return {
        (split, seen.image): seen.size
        for split, stats in splits.items()
        for seen in stats.images
        if seen.size is not None
    }


def label_totals(splits: Iterable[SplitStats]) -> Counter[str]:
    """Boxes of each label, those that no student turn has a box of included."""
    totals: Counter[str] = Counter()
    for stats in splits:
        totals.update({label: use.num_boxes for label, use in stats.labels.items()})
    return totals
