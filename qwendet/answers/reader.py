"""The objects of an answer, and the boxes that stand in none.

A stack of open objects is kept, of bounded depth and without recursion. Braces that do not match are mended
rather than refused: an opening one where no value can stand closes the object before it, a closing one
without a partner is passed over. Square brackets say nothing but where numbers begin and end.
"""

from __future__ import annotations

import math
import re

from qwendet.answers.keys import is_box_key, name_before
from qwendet.answers.records import Box, Record, boxes_of
from qwendet.answers.tokens import NOTHING_MORE, Place, Token, next_token, runs_in

_MAX_DEPTH = (
    32  # answers nest three or four objects; of deeper ones, which are noise, the outermost is given up
)
_LONGEST = 200  # characters of a key, or of a line before a box, that are looked at again
# What may follow a thought without being an answer.
_SAID = re.compile(r"(?:[^\w\[{<]++|<[^<>]*+>|<)*+[\w\[{]")
_LABEL_TOKEN = re.compile(r"\s*<\|object_ref_(?:start|end)\|>\s*")


class AnswerReader:
    """Reads one answer."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._found: list[Box] = []
        self._stack: list[Record] = []
        self._outside_from = 0  # index after the last box that is in no object
        self._ref = ""
        self._ref_start: int | None = None  # None once a box has taken it
        self._thought = (0, len(text))  # boxes named while thinking, and where that ended
        self._is_answer = False  # <answer> was read

    def read(self) -> list[Box]:
        """Read all of the text, once: what was meant as boxes, possible or not, in order."""
        position = 0
        while token := next_token(self.text, position, self._place()):
            position = token.end
            self._take(token)
        self._cut(len(self.text))
        boxes, end = self._thought
        if _SAID.match(self.text, end):
            del self._found[:boxes]
        return sorted(self._found, key=lambda box: box.start)  # an unclosed object may come late

    def _place(self) -> Place:
        if not self._stack:
            return "prose"
        return "value" if self._stack[-1].key and not self._stack[-1].has_value else "object"

    def _take(self, token: Token) -> None:
        match token.kind:
            case "open":
                self._open(token.start)
            case "close":
                self._close(token.end)
            case "key":
                if not self._stack:  # the brace is missing
                    self._open(token.start)
                self._stack[-1].begin_value(token.value[:_LONGEST])
            case "numbers" | "box":
                self._take_numbers(token)
            case "ref" if not (self._stack and self._stack[-1].key):
                self._cut(token.start)
                self._ref, self._ref_start = token.value, token.start
                self._outside_from = token.end
            case "string" | "word" | "ref":
                self._take_text(token, self._stack[-1])
            case "thought_end" | "answer" | "end":
                self._cut(token.start)
                self._outside_from = token.end
                if token.kind == "thought_end" or (token.kind == "answer" and not self._is_answer):
                    self._thought = (len(self._found), token.end)
                self._is_answer |= token.kind == "answer"

    def _open(self, start: int) -> None:
        if self._stack and (not self._stack[-1].key or self._stack[-1].has_value):
            self._close(start)  # a stray brace, or a closing one is missing
        is_skipped = bool(self._stack) and self._stack[-1].skips_value
        self._stack.append(Record(start, is_skipped, is_settled=is_skipped))
        if len(self._stack) > _MAX_DEPTH:
            self._found += self._stack.pop(0).close(start, None)

    def _close(self, end: int) -> None:
        if self._stack:
            record = self._stack.pop()
            self._found += record.close(end, self._stack[-1] if self._stack else None)
            self._outside_from = end

    def _cut(self, end: int) -> None:
        """Close what is open where the text, or the part of it that an object can span, ends."""
        while self._stack:
            record = self._stack[-1]
            record.end_value()
            if not record.is_settled:
                record.add([Box([], record.start, end)])
            self._close(end)

    def _take_text(self, token: Token, record: Record) -> None:
        if is_box_key(record.key) and (runs := runs_in(token.value, 0, len(token.value))):
            record.take_runs([Box(run.numbers, token.start, token.end) for run in runs], continues=True)
            return
        record.texts.append((token.start, record.key, _LABEL_TOKEN.sub("", token.value)))
        record.has_value = True

    def _take_numbers(self, token: Token) -> None:
        runs, in_token = runs_in(self.text, token.start, token.end), token.kind == "box"
        is_cut = token.is_open and NOTHING_MORE.match(self.text, token.end) is not None
        if runs and (is_cut or (token.is_open and not in_token and not self._stack)):
            runs[-1].numbers[-1] = math.nan  # it may be a part of the number, or not the last one
        if in_token and not runs:
            if self.text[token.end : token.end + 1].isalnum():  # (x1,y1),(x2,y2), a template
                return
            runs = [Box([], token.start, token.end)]
        if not self._stack:
            self._take_loose_numbers(token, runs, promised=in_token or is_cut)
        elif in_token:
            self._stack[-1].add(boxes_of(runs, promised=True, in_token=True), self._stack[-1].key)
        else:
            continues = self.text[token.start] not in "[(（［【"
            self._stack[-1].take_runs(runs, continues=continues, promised=is_cut)

    def _take_loose_numbers(self, token: Token, runs: list[Box], promised: bool) -> None:
        """Take numbers in no object; among them ``car(1,2),(3,4)``, whose box tokens the decoder left out."""
        line, in_token = self._line_before(token.start), token.kind == "box"
        if [len(run.numbers) for run in runs] == [2, 2] and self.text[runs[0].start] in "(（":
            is_apart = self.text[runs[0].end : runs[1].start].strip(" ,，")
            promised |= not is_apart and not line.endswith((" ", "\t"))
        boxes = boxes_of(runs, promised=promised, in_token=in_token)
        for box in boxes:
            box.desc = (name_before(line) if self._ref_start is None else "") or self._ref
        if in_token and len(boxes) == 1:
            boxes[0].start = token.start if self._ref_start is None else self._ref_start
            boxes[0].end = token.end
        self._found += boxes
        self._ref_start, self._outside_from = None, token.end

    def _line_before(self, start: int) -> str:
        """What stands on the same line, after the last box or mark."""
        return re.split(r"[\n>]|\\[nrt]", self.text[max(self._outside_from, start - _LONGEST) : start])[-1]
