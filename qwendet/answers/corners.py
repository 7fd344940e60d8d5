"""Corners that no list holds: which of them are a box, as where the decoder left the box tokens out.

The cat(1, 2),(3, 4) and the dog. Top-left: [5, 6]. Bottom-right: [7, 8].
"""

from __future__ import annotations

from qwendet.answers.boxes import BoxTally
from qwendet.answers.frames import ListFrame
from qwendet.answers.names import corner_before
from qwendet.answers.plain import begins_last_point, begins_next_corner


class LooseCorners:
    """The corners since the last box.

    Args:
        text: the whole answer.
        tally: where boxes and failures are counted.
    """

    def __init__(self, text: str, tally: BoxTally) -> None:
        self.text = text
        self.tally = tally
        self._corners: list[ListFrame] = []
        self._first: ListFrame | None = None  # one that is named as the first

    def holds(self, frame: ListFrame, end: int, *, outermost: bool) -> bool:
        """Whether two numbers may be a corner: named, one of several, or in parentheses without a promise.

        Args:
            frame: the closed list, of two numbers.
            end: index after it.
            outermost: no bracket is open around it.
        """
        if self._corners or (outermost and corner_before(self.text, frame.start) is not None):
            return True
        if frame.promised:
            return begins_next_corner(self.text, end, square=True)
        return self.text[frame.start] in "(（"

    def take(self, frame: ListFrame, end: int, *, outermost: bool) -> None:
        """Take a corner; the box is counted once both are there."""
        corner = corner_before(self.text, frame.start) if outermost else None
        if corner == 1:  # the first and the last say it all
            return
        if corner == 2 and self._first is not None:
            self._corners = [self._first, frame]
            self.end(end)
            return
        self._corners.append(frame)
        if begins_next_corner(self.text, end, square=frame.promised):
            return
        if corner == 0 and len(self._corners) == 1:
            self._first = self._corners.pop()
            return
        self.end(end)

    def end(self, end: int) -> None:
        """Count what has come: two corners are a box, more of them a polygon."""
        corners = self._corners
        self.forget()
        if len(corners) == 2 and not begins_last_point(self.text, end):
            corners[0].numbers += corners[1].numbers
            self.tally.count_box(corners[0], end)
        elif corners and corners[0].promised:
            self.tally.reject(corners[0].owner)

    def interrupt(self) -> None:
        """Drop what has come, because what follows is no corner."""
        if self._corners and self._corners[0].promised:
            self.tally.reject(self._corners[0].owner)
        self.forget()

    def forget(self) -> None:
        """Drop what has come: the text, or the part of it that a box can span, ends."""
        self._corners, self._first = [], None
