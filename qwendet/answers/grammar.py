"""The grammar of a valid answer, byte by byte: what training writes, and nothing else.

    [{"bbox_2d": [x1, y1, x2, y2], "label": "one of the set"}, …]
    <|object_ref_start|>one of the set<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>…
    []   without objects, in JSON and in box tokens

Coordinates are integers with ``0 <= x1 < x2 <= width`` and ``0 <= y1 < y2 <= height`` of the answers' frame.
"""

from __future__ import annotations

import json
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
_NUMBER, _LABEL = b"number", b"label"  # in place of a fixed part; a label's closing mark belongs to it


def _four(*between: bytes) -> tuple[bytes, ...]:
    """Four numbers and what stands between them."""
    return (_NUMBER, between[0], _NUMBER, between[1], _NUMBER, between[2], _NUMBER)


_PARTS: dict[AnswerForm, tuple[bytes, ...]] = {
    "json": (b'{"bbox_2d": [', *_four(b", ", b", ", b", "), b'], "label": "', _LABEL, b"}"),
    "box_tokens": (b"\x01", _LABEL, b"\x03(", *_four(b",", b"),(", b","), b")\x04"),
}
_SEPARATOR: dict[AnswerForm, bytes] = {"json": b", ", "box_tokens": b""}
_BEFORE, _OPENED, _AFTER, _CLOSED = -4, -3, -2, -1  # places outside objects


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
        self._parts, self._between = _PARTS[form], _SEPARATOR[form]
        self._labels = frozenset(map(self._label, labels))
        self._prefixes = frozenset(label[:end] for label in self._labels for end in range(len(label) + 1))
        fixed = sum(map(len, self._fixed())) + len(self._between)
        digits = 2 * sum(len(str(side)) for side in size)
        self.longest_object = fixed + digits + max(map(len, self._labels))

    def _label(self, label: str) -> bytes:
        """A label with its closing mark, so that none is the beginning of another."""
        if self.form == "json":
            return json.dumps(label, ensure_ascii=False)[1:].encode()
        return label.encode() + MARKS["<|object_ref_end|>"]

    @property
    def alphabet(self) -> frozenset[int]:
        """Every byte that an answer can hold."""
        return frozenset(b"[]").union(_DIGITS, self._between, *self._fixed(), *self._labels)

    def may_end(self, state: AnswerState) -> bool:
        """Whether an answer can end there."""
        return state.part == _CLOSED or (state.part == _AFTER and self.form == "box_tokens")

    def _fixed(self) -> list[bytes]:
        return [part for part in self._parts if part not in (_NUMBER, _LABEL)]

    def read(self, text: bytes, most_boxes: int, start: AnswerState = _START) -> AnswerState | None:
        """The place after ``text``, read from ``start`` on; ``None`` if no answer goes on like this."""
        state: AnswerState | None = start
        for byte in text:
            state = None if state is None else self.step(state, byte, most_boxes)
        return state

    def step(self, state: AnswerState, byte: int, most_boxes: int) -> AnswerState | None:
        """The place after one more byte; ``None`` if it cannot stand there."""
        if state.part < 0:
            return self._step_outside(state, byte, most_boxes)
        part, written = self._parts[state.part], state.written + bytes((byte,))
        if part == _NUMBER:
            return self._step_number(state, byte)
        if part == _LABEL:
            if written not in self._prefixes:
                return None
            is_whole = written in self._labels
        else:
            if not part.startswith(written):
                return None
            is_whole = written == part
        if not is_whole:
            return state._replace(written=written)
        if state.part == len(self._parts) - 1:
            return AnswerState(_AFTER, boxes=state.boxes)
        return state._replace(part=state.part + 1, written=b"")

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
        text, boxes = b"", state.boxes
        if state.part >= 0:
            text = self._object(*objects[0], state.part)
            objects = objects[1:]
        elif state.part == _BEFORE and (self.form == "json" or not objects):
            text = b"["
        for box, label in objects:
            text += (self._between if boxes else b"") + self._object(box, label)
            boxes += 1
        text += b"]" if self.form == "json" or not boxes else b""
        return text[len(state.written) :]

    def _object(self, box: Sequence[int], label: str, first: int = 0) -> bytes:
        """An object from one of its parts on."""
        name = self._label(label)
        numbers = iter(box[sum(part == _NUMBER for part in self._parts[:first]) :])
        return b"".join(
            str(next(numbers)).encode() if part == _NUMBER else name if part == _LABEL else part
            for part in self._parts[first:]
        )

    def _step_outside(self, state: AnswerState, byte: int, most_boxes: int) -> AnswerState | None:
        if state.part == _BEFORE and byte == ord("["):
            return AnswerState(_OPENED)
        is_json = self.form == "json"  # whose brackets stay open around the objects
        closable = (_OPENED, _AFTER) if is_json else (_OPENED,)
        continuable = (_OPENED if is_json else _BEFORE, _AFTER)
        if byte == ord("]") and not state.written and state.part in closable:
            return AnswerState(_CLOSED, boxes=state.boxes)
        if state.part not in continuable or (not state.written and state.boxes >= most_boxes):
            return None
        first, written = self._parts[0][:1], state.written + bytes((byte,))
        opening = (self._between if state.boxes else b"") + first
        if written != opening:
            return state._replace(written=written) if opening.startswith(written) else None
        begun = AnswerState(0, first, boxes=state.boxes + 1)
        return begun if len(self._parts[0]) > 1 else begun._replace(part=1, written=b"")

    def _step_number(self, state: AnswerState, byte: int) -> AnswerState | None:
        low, high = self._range(state.corners)
        if byte in _DIGITS:
            written = state.written + bytes((byte,))
            return state._replace(written=written) if _can_become(written, low, high) else None
        following = self._parts[state.part + 1]
        if byte != following[0] or not state.written or not low <= int(state.written) <= high:
            return None
        corners = (*state.corners, int(state.written))
        if len(following) == 1:
            return AnswerState(state.part + 2, b"", corners, state.boxes)
        return AnswerState(state.part + 1, following[:1], corners, state.boxes)

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
