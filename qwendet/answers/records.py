"""One object of an answer, key by key, and the boxes that its values are."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from qwendet.answers.keys import as_name, is_box_key, is_no_box_key, label_rank

_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))


@dataclass(slots=True)
class Box:
    """Numbers that were meant as a box, or may be; NaN stands for one that is missing."""

    numbers: list[float]
    start: int  # of the numbers in the text, or of the object whose only box this is
    end: int
    key: str = ""  # the key they stand under, if any
    desc: str = ""

    @property
    def is_possible(self) -> bool:
        """Whether these are four finite numbers with x1 < x2 and y1 < y2."""
        if len(self.numbers) != 4 or not all(map(math.isfinite, self.numbers)):
            return False
        x1, y1, x2, y2 = self.bbox_2d
        return x1 < x2 and y1 < y2

    @property
    def bbox_2d(self) -> tuple[float, float, float, float]:
        """The four numbers."""
        x1, y1, x2, y2 = self.numbers
        return x1, y1, x2, y2


def boxes_of(runs: Sequence[Box], *, promised: bool, in_token: bool = False) -> list[Box]:
    """The runs of four numbers; of the others, if they were meant as boxes, what is left of these.

    Args:
        runs: the numbers under one key or in one box token, parted at the brackets.
        promised: all were meant as boxes: two corners are one, and any other numbers a failed one.
        in_token: more than two corners are several boxes (elsewhere they are a polygon).

    Example:
        >>> corners = [Box([1, 2], 0, 5), Box([3, 4], 6, 11)]
        >>> [box.numbers for box in boxes_of(corners, promised=True)], boxes_of(corners, promised=False)
        ([[1, 2, 3, 4]], [])
    """
    boxes = [run for run in runs if len(run.numbers) == 4]
    rest = [run for run in runs if len(run.numbers) != 4]
    is_stray = bool(boxes) and sum(len(run.numbers) for run in rest) == 1
    if promised and rest and not is_stray:
        are_pairs = len(rest) % 2 == 0 and all(len(run.numbers) == 2 for run in rest)
        step = 2 if in_token and are_pairs else len(rest)
        for parts in (rest[index : index + step] for index in range(0, len(rest), step)):
            numbers = [number for run in parts for number in run.numbers]
            boxes.append(Box(numbers, min(run.start for run in parts), max(run.end for run in parts)))
    return boxes


@dataclass(slots=True)
class Record:
    """An open object."""

    start: int  # of its brace in the text
    is_skipped: bool = False  # it is part of points or of a 3-D box
    is_settled: bool = False  # no box of it is missing
    key: str = ""  # the one being read
    has_value: bool = False  # something under that key was read
    runs: list[Box] = field(default_factory=list)  # the numbers under that key, parted at the brackets
    is_promised: bool = False  # these are meant as a box, whatever the key says
    singles: dict[str, Box] = field(default_factory=dict)  # lone numbers by their key
    boxes: list[Box] = field(default_factory=list)  # what has no label yet
    texts: list[tuple[int, str, str]] = field(default_factory=list)  # each with its place and key

    @property
    def skips_value(self) -> bool:
        """Whether numbers under the key are no box."""
        return self.is_skipped or is_no_box_key(self.key)

    def take_runs(self, runs: Sequence[Box], *, continues: bool, promised: bool = False) -> None:
        """Take numbers under the key; if no bracket opens them, they may continue the last ones."""
        self.has_value = True
        self.is_promised |= promised
        if continues and self.runs and len(self.runs[-1].numbers) < 4:
            self.runs[-1].numbers += runs[0].numbers
            self.runs[-1].end = runs[0].end
            runs = runs[1:]
        self.runs += runs

    def begin_value(self, key: str) -> None:
        """What follows is under ``key``."""
        self.end_value()
        self.key, self.has_value = key, False

    def end_value(self) -> None:
        """Decide which of the key's numbers are boxes."""
        runs, self.runs = self.runs, []
        counts = [len(run.numbers) for run in runs]
        if self.skips_value:
            self.is_settled |= bool(runs)
            return
        if counts == [1]:
            self.singles[self.key.lower().replace("_", "")] = runs[0]
        are_corners = counts == [2, 2] and not as_name(self.key)
        promised = self.is_promised or is_box_key(self.key) or are_corners
        self.add(boxes_of(runs, promised=promised), self.key)
        for names in _CORNERS:
            if all(name in self.singles for name in names):
                self.add(boxes_of([self.singles.pop(name) for name in names], promised=True))

    def add(self, boxes: Sequence[Box], key: str = "") -> None:
        """Take boxes, possible or not, that stand under a key."""
        for box in boxes:
            box.key, box.desc = key, as_name(key)
        self.boxes += boxes
        self.is_settled |= bool(boxes)

    def close(self, end: int, parent: Record | None) -> list[Box]:
        """Label the boxes and return them; what lacks a label or a box is left to the object around this."""
        self.end_value()
        if parent and is_box_key(parent.key) and self.key and not (self.is_settled or parent.is_settled):
            self.add([Box([], self.start, end)])
        if any(is_box_key(box.key) for box in self.boxes):  # beside a box, four numbers are something else
            self.boxes = [box for box in self.boxes if is_box_key(box.key) or not box.key]
        if len(self.boxes) == 1:
            self.boxes[0].start, self.boxes[0].end = self.start, end
        self._label_boxes()
        if parent is None:
            return self.boxes
        parent.is_settled |= self.is_settled
        if self.texts and not self.boxes and parent.key:  # "names": {"en": …}
            parent.texts.append((self.start, parent.key, self.texts[0][2]))
        done = [box for box in self.boxes if box.desc]
        for box in self.boxes:
            if not box.desc:
                box.desc = as_name(parent.key)
                parent.boxes.append(box)
        return done

    def _label_boxes(self) -> None:
        """Pair labels and boxes in order; if one is missing, each box takes the nearest on the usual side."""
        ranks = [(rank, *text) for text in self.texts if (rank := label_rank(text[1])) is not None]
        best = min(ranks)[0] if ranks else 0
        labels = [(place, text) for rank, place, _, text in ranks if rank == best]
        if not labels or not self.boxes:
            return
        self.boxes.sort(key=lambda box: box.start)
        places = [place for place, _ in labels]
        label_first = places[0] < self.boxes[0].start
        for index, box in enumerate(self.boxes):
            if len(labels) != len(self.boxes):
                index = min(bisect_left(places, box.start) - label_first, len(labels) - 1)
            box.desc = labels[index][1] or box.desc
