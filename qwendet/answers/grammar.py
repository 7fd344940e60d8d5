"""The grammar of a valid answer, byte by byte: what training writes, and nothing else.

    [{"bbox_2d": [x1, y1, x2, y2], "label": "one of the set"}, …]   or   []

Coordinates are integers with ``0 <= x1 < x2 <= width`` and ``0 <= y1 < y2 <= height``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

_DIGITS = frozenset(b"0123456789")
_NUMBERS = (1, 3, 5, 7)
_LABEL = 9
# An object's parts; None is a number, or the label with its closing quote.
_PARTS: tuple[bytes | None, ...] = (
    b'{"bbox_2d": [', None, b", ", None, b", ", None, b", ", None, b'], "label": "', None, b"}",
)  # fmt: skip
_BEFORE, _BETWEEN, _CLOSED = -3, -2, -1  # places outside objects


class AnswerState(NamedTuple):
    """A place in an answer.

    Attributes:
        part: index of the object's part being written, or a place outside objects.
        written: the bytes of that part so far.
        corners: the coordinates that the object has already.
        boxes: objects begun.
    """

    part: int = _BEFORE
    written: bytes = b""
    corners: tuple[int, ...] = ()
    boxes: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether the answer's last bracket is closed."""
        return self.part == _CLOSED


class AnswerGrammar:
    """What may follow in an answer about one image.

    Args:
        labels: the label set, at least one.
        size: width and height of the image as the model sees it, in pixels.

    Attributes:
        longest_object: bytes of the longest object with the comma before it.

    Example:
        >>> grammar = AnswerGrammar(["cat"], (644, 476))
        >>> state = grammar.read(b'[{"bbox_2d": [10, 20, 64', most_boxes=1)
        >>> [grammar.step(state, byte, most_boxes=1) is not None for byte in b"0459 ,"]
        [True, True, False, False, False, True]
    """

    def __init__(self, labels: Sequence[str], size: tuple[int, int]) -> None:
        self.size = size
        # The closing quote belongs to the label, so that none is the beginning of another.
        self._labels = frozenset(json.dumps(label, ensure_ascii=False)[1:].encode() for label in labels)
        self._prefixes = frozenset(label[:end] for label in self._labels for end in range(len(label) + 1))
        fixed = sum(len(part) for part in _PARTS if part) + len(b", ")
        digits = 2 * sum(len(str(side)) for side in size)
        self.longest_object = fixed + digits + max(map(len, self._labels))

    @property
    def alphabet(self) -> frozenset[int]:
        """Every byte that an answer can hold."""
        return frozenset(b"[]").union(_DIGITS, *(part for part in _PARTS if part), *self._labels)

    def read(self, text: bytes, most_boxes: int) -> AnswerState | None:
        """The place after ``text``; ``None`` if no answer begins like this."""
        state: AnswerState | None = AnswerState()
        for byte in text:
            state = None if state is None else self.step(state, byte, most_boxes)
        return state

    def step(self, state: AnswerState, byte: int, most_boxes: int) -> AnswerState | None:
        """The place after one more byte; ``None`` if it cannot stand there.

        Args:
            state: where the answer is.
            byte: the next byte.
            most_boxes: no object is begun beyond this many.
        """
        if state.part < 0:
            return self._step_outside(state, byte, most_boxes)
        if state.part in _NUMBERS:
            return self._step_number(state, byte)
        written = state.written + bytes((byte,))
        if state.part == _LABEL:
            if written not in self._prefixes:
                return None
            is_whole = written in self._labels
        else:
            part = _PARTS[state.part] or b""
            if not part.startswith(written):
                return None
            is_whole = written == part
        if not is_whole:
            return state._replace(written=written)
        if state.part == len(_PARTS) - 1:
            return AnswerState(_BETWEEN, boxes=state.boxes)
        corners = () if state.part == _LABEL else state.corners  # they are not needed any more
        return AnswerState(state.part + 1, b"", corners, state.boxes)

    def _step_outside(self, state: AnswerState, byte: int, most_boxes: int) -> AnswerState | None:
        if state.part == _BEFORE:
            return AnswerState(_BETWEEN) if byte == ord("[") else None
        if state.part == _CLOSED:
            return None
        if byte == ord("]") and not state.written:
            return AnswerState(_CLOSED, boxes=state.boxes)
        if not state.written and state.boxes >= most_boxes:
            return None
        opening, written = b", {" if state.boxes else b"{", state.written + bytes((byte,))
        if written == opening:
            return AnswerState(0, b"{", boxes=state.boxes + 1)
        return state._replace(written=written) if opening.startswith(written) else None

    def _step_number(self, state: AnswerState, byte: int) -> AnswerState | None:
        low, high = self._range(state.corners)
        if byte in _DIGITS:
            written = state.written + bytes((byte,))
            return state._replace(written=written) if _can_become(written, low, high) else None
        following = _PARTS[state.part + 1] or b""
        if byte != following[0] or not state.written or not low <= int(state.written) <= high:
            return None
        return AnswerState(state.part + 1, following[:1], (*state.corners, int(state.written)), state.boxes)

    def _range(self, corners: tuple[int, ...]) -> tuple[int, int]:
        """The smallest and the greatest value of the next coordinate."""
        axis = len(corners) % 2
        if len(corners) < 2:
            return 0, self.size[axis] - 1
        return corners[axis] + 1, self.size[axis]


def _can_become(digits: bytes, low: int, high: int) -> bool:
    """Whether digits are the beginning of a number in ``[low, high]`` without leading zeros.

    Example:
        >>> [_can_become(digits, 15, 120) for digits in (b"1", b"2", b"13", b"0")]
        [True, True, False, False]
    """
    least = most = int(digits)
    if digits.startswith(b"0"):
        return digits == b"0" and low <= 0
    while least <= high:
        if most >= low:
            return True
        least, most = least * 10, most * 10 + 9
    return False
