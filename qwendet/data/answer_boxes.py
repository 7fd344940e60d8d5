"""What in an answer is a box, what is a failed one, and what each box is called.

The frames are the open brackets that :mod:`qwendet.data.answer_reader` keeps on its stack.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from qwendet.data.answer_names import LabelText, is_box_key, is_name, pair_labels

# Keys that name a coordinate, and those that name a corner, by the index in a box of their (first) number.
_COORDINATES = {
    "x1": 0, "x0": 0, "xmin": 0, "xtl": 0, "left": 0,
    "y1": 1, "y0": 1, "ymin": 1, "ytl": 1, "top": 1,
    "x2": 2, "xmax": 2, "xbr": 2, "right": 2,
    "y2": 3, "ymax": 3, "ybr": 3, "bottom": 3,
}  # fmt: skip
_CORNERS = {
    "topleft": 0, "lefttop": 0, "upperleft": 0, "左上": 0,
    "bottomright": 2, "rightbottom": 2, "lowerright": 2, "右下": 2,
}  # fmt: skip


@dataclass(slots=True)
class FoundBox:
    """A box in an answer; ``desc`` and the range are settled when its object closes.

    Attributes:
        bbox_2d: x1, y1, x2, y2 as written.
        start: index of the first character of its object (of the box alone where an object holds several).
        end: index after the last one.
        opened: index of the box's own bracket.
        key: the key it stands under, if any.
        desc: its label, if any.
    """

    bbox_2d: tuple[float, float, float, float]
    start: int
    end: int
    opened: int
    key: str
    desc: str


@dataclass(slots=True)
class ObjectFrame:
    """An open brace.

    Attributes:
        start: index of the brace.
        under: the key that holds it; empty if none.
        skipped: it is part of points or of a 3-D box.
        implied: the brace is missing.
        settled: a box in it, or the failure of one, was counted.
        key: the key whose value is being read; empty between values.
        boxes: its boxes that have no label yet.
        texts: its texts, in order.
        coordinates: named coordinates so far, by their index in a box.
        point: its ``x`` and ``y``.
        numbered: it holds other numbers, such as a ``width``.
    """

    start: int
    under: str
    skipped: bool = False
    implied: bool = False
    settled: bool = False
    key: str = ""
    boxes: list[FoundBox] = field(default_factory=list)
    texts: list[LabelText] = field(default_factory=list)
    coordinates: dict[int, float] = field(default_factory=dict)
    point: dict[str, float] = field(default_factory=dict)
    numbered: bool = False

    @property
    def is_point(self) -> bool:
        """Whether an x and a y are all that is in it."""
        return len(self.point) == 2 and not (self.texts or self.boxes or self.coordinates or self.numbered)


@dataclass(slots=True)
class ListFrame:
    """An open bracket, parenthesis or box token.

    Attributes:
        start: index of the bracket.
        owner: the object whose value it is part of.
        name: the text beside it.
        promised: its key or its box token says that this is a box.
        paired: two pairs in it are the corners of a box.
        skipped: it is part of points or of a 3-D box.
        tag: it is a box token.
        implied: the bracket is missing.
        worded: there are words or broken corners in it, so that it is no box; without any number it is a
            template from the prompt.
        tally: number of boxes and failures counted before it.
        numbers: the numbers in it.
        points: those of the points in it, each ``{"x": …, "y": …}``.
    """

    start: int
    owner: ObjectFrame | None
    name: str
    promised: bool = False
    paired: bool = False
    skipped: bool = False
    tag: bool = False
    implied: bool = False
    worded: bool = False
    tally: int = 0
    numbers: list[float] = field(default_factory=list)
    points: list[float] = field(default_factory=list)


class BoxTally:
    """Counts boxes and failures and gives boxes their labels.

    Attributes:
        found: the boxes, in order.
        rejected: the number of incomplete or impossible ones.
    """

    def __init__(self) -> None:
        self.found: list[FoundBox] = []
        self.rejected = 0

    @property
    def total(self) -> int:
        """Number of boxes and failures so far."""
        return len(self.found) + self.rejected

    def reject(self, owner: ObjectFrame | None) -> None:
        """Count a failure in ``owner``."""
        self.rejected += 1
        if owner is not None:
            owner.settled = True

    def count_list(self, frame: ListFrame, end: int) -> None:
        """Count a closed list: a box, a failure if a box was promised, or nothing."""
        count = len(frame.numbers)
        if count == 4 and not frame.worded:
            self.count_box(frame, end)
        elif frame.promised and count and not (frame.implied and count == 1):  # "num_boxes": 3 is none
            self.reject(frame.owner)
        elif frame.worded and frame.owner is not None:
            frame.owner.settled = True

    def count_box(self, frame: ListFrame, end: int) -> None:
        """Count four numbers: a box if they are finite and in order, else a failure."""
        x1, y1, x2, y2 = frame.numbers
        if not (all(map(math.isfinite, frame.numbers)) and x1 < x2 and y1 < y2):
            self.reject(frame.owner)
            return
        box = FoundBox((x1, y1, x2, y2), frame.start, end, frame.start, "", frame.name)
        self.found.append(box)
        if frame.owner is not None:
            box.key = frame.owner.key
            frame.owner.boxes.append(box)
            frame.owner.settled = True

    def take_number(self, owner: ObjectFrame, start: int, end: int, number: float) -> None:
        """Take a number of an object: a coordinate if its key names one, as ``x1`` or ``y_min`` do."""
        key = _bare(owner.key)
        index = _COORDINATES.get(key)
        if index is None or owner.skipped:
            owner.numbered = owner.numbered or key not in {"x", "y"}
            owner.point.update({key: number} if key in {"x", "y"} else {})
            return
        if key in {"x1", "y1"} and index in owner.coordinates:  # x0, y0, x1, y1
            index += 2
        self._take_coordinates(owner, start, end, {index: number})

    def take_corner(self, owner: ObjectFrame, start: int, end: int, x: float, y: float) -> None:
        """Take the corner that the object's key names, as ``top_left`` does."""
        index = _CORNERS[_bare(owner.key)]
        self._take_coordinates(owner, start, end, {index: x, index + 1: y})

    def _take_coordinates(self, owner: ObjectFrame, start: int, end: int, found: dict[int, float]) -> None:
        owner.coordinates.update(found)
        if len(owner.coordinates) == 4:
            numbers = [owner.coordinates[index] for index in range(4)]
            owner.coordinates.clear()
            owner.key = ""  # it names a coordinate, not the box
            self.count_box(ListFrame(start, owner, "", numbers=numbers), end)

    def close_object(self, frame: ObjectFrame, parent: ObjectFrame | None, end: int) -> None:
        """Label the boxes of a closed object; hand those without label, or a label, to its parent."""
        unsettled = not frame.settled and not frame.skipped
        # The parts of one box, as in {"bbox": [{"x": 1, "y": 2}, {"x": 3, "y": 4}]}, fail together.
        is_part = parent is not None and parent.settled
        if unsettled and (
            frame.coordinates or (_has_content(frame) and is_box_key(frame.under) and not is_part)
        ):
            self.reject(frame)
        if len(frame.boxes) == 1:
            frame.boxes[0].start, frame.boxes[0].end = frame.start, end
        labels = pair_labels([box.start for box in frame.boxes], frame.texts)
        for box, label in zip(frame.boxes, labels, strict=True):
            box.desc = label or box.desc or (box.key if is_name(box.key) else "")
        if parent is not None:
            _hand_over(frame, parent)


def is_coordinate_key(key: str) -> bool:
    """Whether a key names a coordinate of a corner, as ``x1`` and ``y_min`` do."""
    return _bare(key) in _COORDINATES


def is_corner_key(key: str) -> bool:
    """Whether a key names a corner of a box, as ``top_left`` does."""
    return _bare(key) in _CORNERS


def _bare(key: str) -> str:
    return re.sub(r"[_\s-]|corner|角", "", key.lower())


def _has_content(frame: ObjectFrame) -> bool:
    return bool(frame.texts or frame.numbered or frame.point)


def _hand_over(frame: ObjectFrame, parent: ObjectFrame) -> None:
    parent.settled = parent.settled or frame.settled or frame.skipped
    parent.numbered = parent.numbered or frame.numbered or bool(frame.point)
    for box in frame.boxes:
        if not box.desc:
            box.key = parent.key
            parent.boxes.append(box)
    if frame.texts and not frame.boxes and parent.key:  # "names": {"en": …}
        parent.texts.append(LabelText(frame.start, parent.key, frame.texts[0].value))
