"""The grammar of a valid answer, byte by byte: what training writes, and nothing else.

    [{"bbox_2d": [x1, y1, x2, y2], "label": "one of the set"}, …]
    <|object_ref_start|>one of the set<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>…
    []   without objects, in JSON and in box tokens

Coordinates are integers with ``0 <= x1 < x2 <= width`` and ``0 <= y1 < y2 <= height`` of the answers' frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from qwendet.families.family import AnswerForm

MARKS = {
    "<|object_ref_start|>": b"\x01",
    "<|object_ref_end|>": b"\x02",
    "<|box_start|>": b"\x03",
    "<|box_end|>": b"\x04",
}
"""Bytes that stand for the tokens of boxes; no label holds them."""

_DIGITS = frozenset(b"0123456789")
_NUMBER, _LABEL = b"N", b"L"  # where they stand in an object; a label's closing mark belongs to it
_OBJECT: dict[AnswerForm, bytes] = {
    "json": b'{"bbox_2d": [N, N, N, N], "label": "L}',
    "box_tokens": b"\x01L\x03(N,N),(N,N)\x04",
}
_BEFORE, _AFTER, _CLOSED = -3, -2, -1  # places outside objects: before the first, after one, at the end
# Of the first two, what stands before another object, and what closes the answer.
_OUTSIDE: dict[AnswerForm, dict[int, tuple[bytes, bytes]]] = {
    "json": {_BEFORE: (b"[", b"[]"), _AFTER: (b", ", b"]")},
    "box_tokens": {_BEFORE: (b"", b"[]"), _AFTER: (b"", b"")},
}


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


_START = AnswerState()


class AnswerGrammar:
    """What may follow in an answer about one image.

    Attributes:
        longest_object: bytes of the longest object with the comma before it.

    Example:
        >>> grammar = AnswerGrammar(["cat"], (644, 476))
        >>> state = grammar.read(b'[{"bbox_2d": [10, 20, 64', most_boxes=1)
        >>> [grammar.step(state, byte, most_boxes=1) is not None for byte in b"0459 ,"]
        [True, True, False, False, False, True]
    """

    def __init__(self, labels: Sequence[str], size: tuple[int, int], form: AnswerForm = "json") -> None:
        self.size = size
        self.form = form
        self._outside = _OUTSIDE[form]
        self._parts = re.split(b"([NL])", _OBJECT[form])
        texts = {_NUMBER: [], _LABEL: [self._label(label) for label in labels]}
        self._begun = [_beginnings(texts.get(part, [part])) for part in self._parts]
        written = sum(max(map(len, begun), default=0) for begun in self._begun)
        digits = 2 * sum(len(str(side)) for side in size)
        self.longest_object = len(self._outside[_AFTER][0]) + written + digits

    def _label(self, label: str) -> bytes:
        """A label with its closing mark, so that none is the beginning of another."""
        if self.form == "json":
            return json.dumps(label, ensure_ascii=False)[1:].encode()
        return label.encode() + MARKS["<|object_ref_end|>"]

    @property
    def alphabet(self) -> frozenset[int]:
        """Every byte that an answer can hold."""
        texts = (text for begun in self._begun for text, is_whole in begun.items() if is_whole)
        return _DIGITS.union(b"[]", self._outside[_AFTER][0], *texts)

    def may_end(self, state: AnswerState) -> bool:
        """Whether an answer can end there."""
        return state.part == _CLOSED or (state.part == _AFTER and self.form == "box_tokens")

    def read(self, text: bytes, most_boxes: int, start: AnswerState = _START) -> AnswerState | None:
        """The place after ``text``, read from ``start`` on; ``None`` if no answer goes on like this."""
        state: AnswerState | None = start
        for byte in text:
            state = None if state is None else self.step(state, byte, most_boxes)
        return state

    def step(self, state: AnswerState, byte: int, most_boxes: int) -> AnswerState | None:
        """The place after one more byte; ``None`` if it cannot stand there."""
        part, before, corners, boxes = state
        written = before + bytes((byte,))
        if part == _CLOSED:
            return None
        if part < 0:
            return self._step_outside(state, written, most_boxes)
        if self._parts[part] == _NUMBER:
            low, high = self._range(corners)
            if byte in _DIGITS:
                return state._replace(written=written) if _can_become(written, low, high) else None
            if not before or not low <= int(before) <= high:
                return None
            part, written, corners = part + 1, written[-1:], (*corners, int(before))
        return self._in_text(part, written, corners, boxes)

    def _step_outside(self, state: AnswerState, written: bytes, most_boxes: int) -> AnswerState | None:
        between, closing = self._outside[state.part]
        if written == closing:
            return AnswerState(_CLOSED, boxes=state.boxes)
        if closing.startswith(written):
            return state._replace(written=written)
        begins_here = closing.startswith(state.written)  # an object: before this byte it could end
        opening = between + self._parts[0][:1]
        if not opening.startswith(written) or (begins_here and state.boxes >= most_boxes):
            return None
        if written != opening:
            return state._replace(written=written)
        return self._in_text(0, written[-1:], (), state.boxes + 1)

    def _in_text(self, part: int, written: bytes, corners: tuple[int, ...], boxes: int) -> AnswerState | None:
        """The place after a part that is no number, or after what is written of it."""
        is_whole = self._begun[part].get(written)
        if is_whole and part == len(self._parts) - 1:
            return AnswerState(_AFTER, boxes=boxes)
        if is_whole:
            return AnswerState(part + 1, b"", corners, boxes)
        return None if is_whole is None else AnswerState(part, written, corners, boxes)

    def digits(self, state: AnswerState) -> bytes:
        """Digits of the number that is being written; empty outside of one."""
        return state.written if state.part >= 0 and self._parts[state.part] == _NUMBER else b""

    def label_begun(self, state: AnswerState) -> bytes:
        """What is written of the label that is being written; empty outside of one."""
        return state.written if state.part >= 0 and self._parts[state.part] == _LABEL else b""

    def rest(self, state: AnswerState, objects: Sequence[tuple[Sequence[int], str]]) -> bytes:
        """What is left to write from a place on, if only objects are still to be written.

        Args:
            state: the place.
            objects: box and label; the first is the one that is being written, where one is, and agrees with
                what is written of its current part.
        """
        text, place = b"", state.part
        if place == _CLOSED:
            return text
        if place >= 0:
            text, objects, place = self._object(*objects[0], place), objects[1:], _AFTER
        for box, label in objects:
            text += self._outside[place][0] + self._object(box, label)
            place = _AFTER
        return (text + self._outside[place][1])[len(state.written) :]

    def _object(self, box: Sequence[int], label: str, first: int = 0) -> bytes:
        """An object from one of its parts on."""
        name = self._label(label)
        numbers = iter(box[sum(part == _NUMBER for part in self._parts[:first]) :])
        return b"".join(
            str(next(numbers)).encode() if part == _NUMBER else name if part == _LABEL else part
            for part in self._parts[first:]
        )

    def _range(self, corners: tuple[int, ...]) -> tuple[int, int]:
        """The smallest and the greatest value of the next coordinate."""
        axis = len(corners) % 2
        if len(corners) < 2:
            return 0, self.size[axis] - 1
        return corners[axis] + 1, self.size[axis]


def _beginnings(texts: Sequence[bytes]) -> dict[bytes, bool]:
    """All that may be written of some texts, and whether it is one of them."""
    begun = {text[:end]: False for text in texts for end in range(len(text))}
    return begun | dict.fromkeys(texts, True)


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
