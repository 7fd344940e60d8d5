"""One object of an answer, key by key, and the boxes that its values are."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from qwendet.answers.keys import as_name, label_rank, promises_box
from qwendet.answers.tokens import NOTHING_MORE, NUMBER, RUN


@dataclass(slots=True)
class Box:
    """Numbers that were meant as a box, or may be; NaN stands for one that is missing."""

    numbers: list[float]
    start: int  # of the numbers in the text, or of the object whose only box this is
    end: int
    key: str = ""  # the key they stand under, if any
    desc: str = ""


Meant = Literal["four", "corners", "boxes", "token"]
"""What is a box: ``four`` numbers between two brackets; beside these two pairs alone, ``corners``; all
numbers, ``boxes``, the last of which is what is left, and may have failed; so in a box ``token``, where more
than two corners are several boxes (elsewhere they are a polygon)."""


def boxes_in(text: str, start: int, end: int, meant: Meant) -> list[Box]:
    """What is meant as boxes in ``text[start:end]``, possible or not; one that the end cuts is impossible.

    Example:
        >>> [box.numbers for box in boxes_in("[1, 2], [3, null]", 0, 17, "boxes")]
        [[1.0, 2.0, 3.0, nan]]
        >>> boxes_in("[1, 2], [3, 4]", 0, 14, "four")
        []
    """
    runs = _runs_in(text, start, end)
    if runs and text[end - 1] not in "\"'>])" and NOTHING_MORE.match(text, end):
        runs[-1].numbers[-1] = math.nan  # it may be a part of the number, or not the last one
        meant = "token" if meant == "token" else "boxes"
    boxes = [run for run in runs if len(run.numbers) == 4]
    rest = [run for run in runs if len(run.numbers) != 4]
    are_pairs = len(rest) % 2 == 0 and all(len(run.numbers) == 2 for run in rest)
    are_corners = meant == "corners" and are_pairs and len(runs) == 2
    is_stray = bool(boxes) and sum(len(run.numbers) for run in rest) <= 1
    if is_stray or (meant in ("four", "corners") and not are_corners):
        return boxes
    step = 2 if meant == "token" and are_pairs else len(rest) or 1
    for index in range(0, len(rest), step):
        parts = rest[index : index + step]
        boxes.append(Box([number for run in parts for number in run.numbers], parts[0].start, parts[-1].end))
    return boxes or [Box([], start, end)]


def _runs_in(text: str, start: int, end: int) -> list[Box]:
    """The numbers, parted where brackets open and close; NaN for a missing number."""
    runs: list[Box] = []
    for piece in RUN.finditer(text, start, end):
        if numerals := NUMBER.findall(piece[0]):
            numbers = [math.nan if numeral[-1] in "lLeE" else float(numeral) for numeral in numerals]
            if runs and runs[-1].end == piece.start() and piece[0][0].isdigit():  # a bracket in a number
                numbers = runs.pop().numbers + numbers
            runs.append(Box(numbers, *piece.span()))
    return runs


@dataclass(slots=True)
class Record:
    """An open object."""

    text: str  # of the answer
    start: int  # of its brace in the text
    is_skipped: bool = False  # it is part of points or of a 3-D box
    is_complete: bool = False  # no box of it is missing
    key: str = ""  # the one being read
    has_value: bool = False  # something under that key was read
    numbers: tuple[int, int] = (0, 0)  # where the numbers under that key begin and end in the text
    boxes: list[Box] = field(default_factory=list)  # what has no label yet
    texts: list[tuple[int, str, str]] = field(default_factory=list)  # each with its place and key

    @property
    def skips_value(self) -> bool:
        """Whether numbers under the key are no box."""
        return self.is_skipped or promises_box(self.key) is None

    def take_numbers(self, start: int, end: int) -> None:
        """Take numbers under the key, with what is between them and those before."""
        self.numbers = (self.numbers[0] or start, end)
        self.has_value = True

    def end_value(self) -> None:
        """Decide which of the key's numbers are boxes."""
        (start, end), self.numbers = self.numbers, (0, 0)
        if self.skips_value:
            self.is_complete |= end > 0
        elif end:
            meant: Meant = "four" if as_name(self.key) else "corners"
            self.add(boxes_in(self.text, start, end, "boxes" if promises_box(self.key) else meant), self.key)

    def add(self, boxes: Sequence[Box], key: str = "") -> None:
        """Take boxes, possible or not, that stand under a key."""
        for box in boxes:
            box.key, box.desc = key, as_name(key)
        self.boxes += boxes
        self.is_complete |= bool(boxes)

    def close(self, end: int, parent: Record | None) -> list[Box]:
        """Label the boxes and return them; what lacks a label or a box is left to the object around this."""
        self.end_value()
        if parent and promises_box(parent.key) and self.key and not (self.is_complete or parent.is_complete):
            self.add([Box([], self.start, end)])
        if any(promises_box(box.key) for box in self.boxes):  # beside a box, four numbers are something else
            self.boxes = [box for box in self.boxes if promises_box(box.key) or not box.key]
        if len(self.boxes) == 1:
            self.boxes[0].start, self.boxes[0].end = self.start, end
        self._label_boxes()
        if parent is None:
            return self.boxes
        parent.is_complete |= self.is_complete
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
        best = min(ranks, default=(0,))[0]
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
