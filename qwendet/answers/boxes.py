"""What in an answer is a box, what is a failed one, and which label each box gets."""

from __future__ import annotations

import math

from qwendet.answers.frames import FoundBox, ListFrame, ObjectFrame
from qwendet.answers.keys import coordinate_index, corner_index, is_box_key, is_name
from qwendet.answers.names import LabelText, pair_labels


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
        index = coordinate_index(owner.key)
        if index is None or owner.skipped:
            is_of_point = owner.key.lower() in {"x", "y"}
            owner.numbered = owner.numbered or not is_of_point
            if is_of_point:
                owner.point[owner.key.lower()] = number
            return
        if index in owner.coordinates and index < 2:  # x1 after x0
            index += 2
        self._take_coordinates(owner, start, end, {index: number})

    def take_corner(self, owner: ObjectFrame, start: int, end: int, x: float, y: float) -> None:
        """Take the corner that the object's key names, as ``top_left`` does; any other point is none."""
        index = corner_index(owner.key)
        if index is not None:
            self._take_coordinates(owner, start, end, {index: x, index + 1: y})

    def _take_coordinates(self, owner: ObjectFrame, start: int, end: int, found: dict[int, float]) -> None:
        if not owner.coordinates:
            owner.coordinates_start = start
        owner.coordinates.update(found)
        if len(owner.coordinates) == 4:
            numbers = [owner.coordinates[index] for index in range(4)]
            owner.coordinates.clear()
            owner.key = ""  # it names a coordinate, not the box
            self.count_box(ListFrame(owner.coordinates_start, owner, "", numbers=numbers), end)

    def close_object(self, frame: ObjectFrame, parent: ObjectFrame | None, end: int) -> None:
        """Label the boxes of a closed object; hand those without label, or a label, to its parent."""
        unsettled = not frame.settled and not frame.skipped
        # The parts of one box, as in {"bbox": [{"width": 3}, {"height": 4}]}, fail together.
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
