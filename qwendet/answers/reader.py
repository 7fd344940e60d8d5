"""The objects of an answer, and the boxes that stand in none.

A stack of open objects is kept, of bounded depth and without recursion. Braces that do not match are repaired
rather than refused: an opening one where no value can stand closes the object before it, a closing one
without a partner is passed over. Square brackets say nothing but where numbers begin and end.
"""

from __future__ import annotations

import math
import re
import string

from qwendet.answers.keys import name_before, promises_box
from qwendet.answers.records import Box, Meant, Record, boxes_in
from qwendet.answers.tokens import ASCII, NUMBER, OBJECT, PROSE, VALUE, text_of

_MAX_DEPTH = 32  # answers nest three or four objects; of deeper ones, noise, the outermost is given up
_LONGEST = 200  # characters of a key, or of a line before a box, that are looked at again
_NO_KEY = string.punctuation + string.whitespace
# What may follow a thought without being an answer.
_SAID = re.compile(r"(?:[^\w\[{<]++|<[^<>]*+>|<)*+[\w\[{]")
_PAIR = re.compile(r"\([^()]*\)?[ ,]*\([^()]*\)?")
_LABEL_TOKEN = re.compile(r"\s*<\|object_ref_(?:start|end)\|>\s*")


class AnswerReader:
    """Reads one answer."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ascii = text.translate(ASCII)
        self._found: list[Box] = []
        self._stack: list[Record] = []
        self._outside_from = 0  # index after the last token outside objects
        self._ref = ""
        self._ref_start: int | None = None  # None once a box has taken it
        self._thought = (0, len(text))  # boxes named while thinking, and where that ended
        self._is_answer = False  # <answer> was read

    def read(self) -> list[Box]:
        """Read all of the text, once: what was meant as boxes, possible or not, in order."""
        position = 0
        while token := self._pattern().search(self._ascii, position):
            position = token.end()
            self._take(token, token.lastgroup or "")
            if not self._stack and token.lastgroup != "skip":
                self._outside_from = position
        self._cut(len(self._text))
        boxes, end = self._thought
        if _SAID.match(self._text, end):
            del self._found[:boxes]
        return sorted(self._found, key=lambda box: box.start)  # an unclosed object may come late

    def _pattern(self) -> re.Pattern[str]:
        if not self._stack:
            return PROSE
        return VALUE if self._stack[-1].key and not self._stack[-1].has_value else OBJECT

    def _take(self, token: re.Match[str], kind: str) -> None:
        start, end = token.span()
        match kind:
            case "open":
                self._open(start)
            case "close":
                self._close(end)
            case "key":
                self._begin_value(start, token[0].strip(_NO_KEY))
            case "string" | "word":
                text = text_of(token, self._text)
                if token["colon"] or token["word_colon"]:
                    self._begin_value(start, text or "")
                elif text is not None:
                    self._take_text(start, end, text)
            case "numbers" | "box":
                self._take_numbers(start, end, in_token=kind == "box")
            case "ref" if self._stack and self._stack[-1].key:
                self._take_text(start, end, token["name"].strip())
            case "ref":
                self._cut(start)
                self._ref, self._ref_start = token["name"].strip(), start
            case "thought_end" | "answer" | "end":
                self._cut(start)
                if kind == "thought_end" or (kind == "answer" and not self._is_answer):
                    self._thought = (len(self._found), end)
                self._is_answer |= kind == "answer"

    def _open(self, start: int) -> None:
        if self._stack and (not self._stack[-1].key or self._stack[-1].has_value):
            self._close(start)  # a stray brace, or a closing one is missing
        is_skipped = bool(self._stack) and self._stack[-1].skips_value
        self._stack.append(Record(self._ascii, start, is_skipped, is_complete=is_skipped))
        if len(self._stack) > _MAX_DEPTH:
            self._found += self._stack.pop(0).close(start, None)

    def _close(self, end: int) -> None:
        if self._stack:
            record = self._stack.pop()
            self._found += record.close(end, self._stack[-1] if self._stack else None)

    def _cut(self, end: int) -> None:
        """Close what is open where the text, or the part of it that an object can span, ends."""
        while self._stack:
            record = self._stack[-1]
            record.end_value()
            if not record.is_complete:
                record.add([Box([], record.start, end)])
            self._close(end)

    def _begin_value(self, start: int, key: str) -> None:
        if not self._stack:  # the brace is missing
            self._open(start)
        self._stack[-1].end_value()
        self._stack[-1].key, self._stack[-1].has_value = key[:_LONGEST], False

    def _take_text(self, start: int, end: int, text: str) -> None:
        record = self._stack[-1]
        if promises_box(record.key) and NUMBER.search(text):
            record.take_numbers(start, end)
        else:
            record.texts.append((start, record.key, _LABEL_TOKEN.sub("", text)))
            record.has_value = True

    def _take_numbers(self, start: int, end: int, *, in_token: bool) -> None:
        is_empty = in_token and NUMBER.search(self._ascii, start, end) is None
        if is_empty and self._text[end : end + 1].isalnum():  # (x1,y1),(x2,y2), a template
            return
        if not self._stack:
            self._take_loose_numbers(start, end, in_token=in_token)
        elif in_token:
            self._stack[-1].add(boxes_in(self._ascii, start, end, "token"), self._stack[-1].key)
        else:
            self._stack[-1].take_numbers(start, end)

    def _take_loose_numbers(self, start: int, end: int, *, in_token: bool) -> None:
        """Take numbers in no object; among them ``car(1,2),(3,4)``, whose box tokens the decoder left out."""
        before = self._text[max(self._outside_from, start - _LONGEST) : start]
        line = re.split(r"[\n>]|\\[nrt]", before)[-1]
        is_named = _PAIR.fullmatch(self._ascii, start, end) and not line.endswith((" ", "\t"))
        meant: Meant = "token" if in_token else "corners" if is_named else "four"
        boxes = boxes_in(self._ascii, start, end, meant)
        for box in boxes:
            box.desc = self._ref or name_before(line)
        if in_token and len(boxes) == 1:
            boxes[0].start = start if self._ref_start is None else self._ref_start
            boxes[0].end = end
        elif not in_token and boxes and boxes[-1].end == end and self._ascii[end - 1] not in ")]":
            boxes[-1].numbers[-1] = math.nan  # no bracket closes it: it may not be the last one
        self._found += boxes
        self._ref_start = None
