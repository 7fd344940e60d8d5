"""What an answer may say next: by the head's boxes, and by what was written before in its form.

    written        [{"bbox_2d": [102, 4
    head           (97, 43, 180, 121) red circle     the nearest box to what is written
    draft                               3, 180, 121], "label": "red circle"}, {"bbox_2d": [

    written        {"bbox_2d": [102, 40, 171, 119        without a head, and where no box is near:
    seen before     {"bbox_2d": [N, N, N, N              what followed this, up to the next number
    draft                                   ], "label": "red circle"}, {"bbox_2d": [

A draft costs time where it is wrong, and nothing else: verification keeps what the model itself would write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from qwendet.answers.format import as_written, format_answer
from qwendet.answers.grammar import MARKS, AnswerGrammar, AnswerState
from qwendet.data.samples import DetectedObject
from qwendet.encoding.encode import EncodedSample
from qwendet.encoding.resize import rescale_xyxy
from qwendet.inference.constrained_decoding import token_bytes
from qwendet.inference.detections import Detection
from qwendet.inference.text_answers import answer_size
from qwendet.loader import Interface

_NUMBER = -1  # in place of the digits of a number
_ENOUGH = 10**9
_SYMBOLS = (12, 6, 3)  # numbers of symbols that what is repeated must have in common
_LOOP = 48  # tokens, digits included: an answer that says the same object again and again
_START = -2  # in place of the prompt
_END = b"\x05"  # in place of the end of turn
_FIRST, _LEAST, _MOST = 16, 8, 64  # lengths of drafts
_SURE = 0.2  # score of the head's boxes that are drafted
_EXAMPLES = 8  # labels in the example of an answer
_BYTES = 6  # of a token at most, where drafts are cut before they are tokenised
_TWO_NUMBERS = re.compile(rb"\D*(?:\d+\D*){,2}")
_FAR = 0.1  # of the frame's longer side: boxes further from what is written are of another object


Row = tuple[Sequence[int], str]
"""A box in the frame of answers, as it would be written, and its label."""


class Repeats:
    """What followed the same tokens before, whatever the numbers between them.

    Args:
        lengths: numbers of tokens that must be the same, the longest first; a number counts as one.
        tokens: tells what a number is; ``None`` takes each digit for itself.
    """

    def __init__(self, lengths: Sequence[int], tokens: DraftTokens | None = None) -> None:
        self._lengths, self._tokens = lengths, tokens
        self._newest = 0
        self._symbols: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}

    def write(self, tokens: Sequence[int]) -> None:
        """Go on with more tokens."""
        for token in tokens:
            is_number = self._tokens is not None and self._tokens.is_number(self._newest, token)
            symbol, self._newest = _NUMBER if is_number else token, token
            if symbol == _NUMBER and self._symbols[-1:] == [_NUMBER]:
                continue
            for length in self._lengths:
                self._places[tuple(self._symbols[-length:])] = len(self._symbols)
            self._symbols.append(symbol)

    def following(self, most: int) -> list[int]:
        """Tokens up to the next number."""
        for length in self._lengths:
            place = self._places.get(tuple(self._symbols[-length:]))
            if place is not None:
                return [*takewhile(lambda symbol: symbol >= 0, self._symbols[place : place + most])]
        return []


class BoxDraft:
    """The rest of an answer by boxes: those of the head, and where none of them is near, one like the last.

    Args:
        grammar: of answers about the image.
        labels: the label set.
        rows: what the head found, in the order of answers; ``None`` without a head.
    """

    def __init__(self, grammar: AnswerGrammar, labels: Sequence[str], rows: Sequence[Row] | None) -> None:
        self._grammar, self._labels = grammar, labels
        self._left = list(rows or ())
        self._knows_end = bool(rows)  # until the answer tells of more objects
        self._state: AnswerState | None = AnswerState()
        self._far = _FAR * max(grammar.size)
        self._begun_label = self._label = b""  # of the object that is written, and of the last one
        self._last: tuple[int, ...] = ()  # the box of that

    def write(self, text: bytes) -> None:
        """Go on with more of the answer; an object that is finished is not drafted again."""
        for byte in text:
            before = self._state
            if before is None:
                return
            self._state = self._grammar.step(before, byte, _ENOUGH)
            self._begun_label = self._grammar.label_begun(before) or self._begun_label
            if self._state is None:
                return
            if before.part >= 0 > self._state.part:
                self._finish(before.corners)
            elif not self._left and before.part < 0 <= self._state.part:
                self._knows_end = False

    def rest(self) -> bytes:
        """What may come next; empty where nothing is known."""
        state = self._state
        if state is None or (state.part < 0 and not self._knows_end):
            return b""
        if state.part < 0:
            return self._grammar.rest(state, self._left) + _END
        numbers, digits = state.corners, self._grammar.digits(state)
        row = self._nearest(numbers, digits)
        if row is not None:
            begun, others = self._begun(row, state), [other for other in self._left if other is not row]
            return self._grammar.rest(state, [begun, *others]) + _END
        if not self._last:
            return b""
        x1, y1, x2, y2 = self._last
        x, y = [*numbers, x1, y1][:2] if len(numbers) != 1 else (numbers[0], y1)
        like_last = (x, y, x + x2 - x1, y + y2 - y1), self._label.decode(errors="ignore")
        text = self._grammar.rest(state, [self._begun(like_last, state), like_last])
        return _TWO_NUMBERS.match(text)[0]  # type: ignore[index]  # it matches the empty text

    def _begun(self, row: Row, state: AnswerState) -> Row:
        """The object that is being written, as the row would go on with it."""
        numbers, digits = state.corners, self._grammar.digits(state)
        box, begins = [*numbers, *row[0][len(numbers) :]], self._grammar.label_begun(state)
        if digits:
            box[len(numbers)] = with_digits(digits, box[len(numbers)])
        agreeing = (label for label in (row[1], *self._labels) if label.encode().startswith(begins))
        return box, next(agreeing, row[1])

    def _finish(self, corners: tuple[int, ...]) -> None:
        """Leave out the box that was written, and those that should have come before it."""
        row = self._nearest(corners)
        passed = corners[1] - self._far
        self._left = [other for other in self._left if other is not row and other[0][1] >= passed]
        self._last, self._label = corners, self._begun_label

    def _nearest(self, numbers: Sequence[int], digits: bytes = b"") -> Row | None:
        """The row whose box is nearest to the coordinates that are written; the next one where none is."""

        def distance(row: Row) -> float:
            written = [*numbers, with_digits(digits, row[0][len(numbers)])] if digits else numbers
            gaps = [abs(number - own) for number, own in zip(written, row[0], strict=False)]
            return sum(gaps) / max(1, len(gaps))

        row = min(self._left, key=distance, default=None)
        return row if row is not None and distance(row) <= self._far else None


def with_digits(digits: bytes, number: int) -> int:
    """The nearest number to another one that begins with these digits.

    Example:
        >>> [with_digits(digits, 129) for digits in (b"1", b"12", b"13", b"7", b"0")]
        [129, 129, 130, 79, 0]
    """
    if digits == b"0":
        return 0
    ranges = [(int(digits) * 10**more, (int(digits) + 1) * 10**more - 1) for more in range(5)]
    nearest: list[int] = [min(max(number, low), high) for low, high in ranges]
    return min(nearest, key=lambda near: abs(near - number))


class DraftTokens:
    """A tokenizer as drafts need it: bytes of a token, with marks for those of boxes, and back."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}
        marks = {**MARKS, tokenizer.eos_token: _END}
        self._marks = {mark[0]: word for word, mark in marks.items()}
        self.end_id: int = tokenizer.eos_token_id
        self._digits = frozenset(tokenizer.convert_tokens_to_ids(list("0123456789")))

    def is_number(self, before: int, token: int) -> bool:
        """Whether a token is a digit of a number; that of a name, as in ``bbox_2d``, is none."""
        return token in self._digits and (before in self._digits or not self._ends_a_word(before))

    def _ends_a_word(self, token: int) -> bool:
        last = self.text([token])[-1:]
        return last == b"_" or last.isalpha()

    def text(self, tokens: Sequence[int]) -> bytes:
        """Bytes that tokens write."""
        for token in tokens:
            if token not in self._bytes:
                word = self._tokenizer.convert_ids_to_tokens(token)
                self._bytes[token] = MARKS.get(word, None) or token_bytes(word)
        return b"".join(self._bytes[token] for token in tokens)

    def ids(self, text: bytes) -> list[int]:
        """Tokens of a text; half a character at its beginning is left out."""
        words = text.decode(errors="ignore").translate(self._marks)
        found: list[int] = self._tokenizer.backend_tokenizer.encode(words, add_special_tokens=False).ids
        return found


class AnswerDrafter:
    """Drafts an answer in the form that the model was trained to write."""

    def __init__(self, tokens: DraftTokens, example: Sequence[int], boxes: BoxDraft) -> None:
        self._tokens = tokens
        self._boxes = boxes
        self._repeats = Repeats(_SYMBOLS, tokens)
        self._loop = Repeats((_LOOP,))
        self._repeats.write([_START, *example, _START])
        self._drafted: list[int] = []
        self._most = _FIRST

    def write(self, tokens: Sequence[int]) -> None:
        """Take note of what was written: the next draft may be twice as long as this one held."""
        held = len(tokens) - 1
        if self._drafted:
            self._most = min(2 * self._most, _MOST) if held == len(self._drafted) else max(_LEAST, 2 * held)
        self._repeats.write(tokens)
        self._loop.write(tokens)
        self._boxes.write(self._tokens.text(tokens))

    def draft(self) -> list[int]:
        """Tokens that may come next; may be none."""
        most = self._most
        self._drafted = (
            self._loop.following(most)
            or self._tokens.ids(self._boxes.rest()[: _BYTES * most])[:most]
            or self._repeats.following(most)
        )
        return self._drafted


class AnswerDrafts:
    """Drafts for every answer of a model."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._form = interface.processor.family.answer_form
        self._tokens = DraftTokens(interface.processor.tokenizer)
        objects = [DetectedObject((1, 2, 3, 4), label) for label in interface.labels[:_EXAMPLES]]
        example = format_answer(objects, self._form)
        self._example = [*self._tokens.ids(example.encode()), self._tokens.end_id]

    def of(self, item: EncodedSample, found: Sequence[Detection] | None) -> AnswerDrafter:
        """Draft the answer about a sample; ``found`` by the head, in pixels of the displayed image."""
        size = answer_size(self._interface, item)
        rows = None
        if found is not None:  # what the head is sure enough of, each box with its likeliest label
            asked = (hit for hit in reversed(found) if hit.score >= _SURE and hit.desc in item.labels)
            sure = {hit.bbox_2d: hit.desc for hit in asked}
            moved = rescale_xyxy(list(sure), item.image_size, size).tolist()
            rows = as_written([*map(DetectedObject, map(tuple, moved), sure.values())])
        boxes = BoxDraft(AnswerGrammar(item.labels, size, self._form), item.labels, rows)
        return AnswerDrafter(self._tokens, self._example, boxes)
