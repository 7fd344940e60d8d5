"""The brackets of an answer: which belong together, and which one a number or a text is part of.

A stack of open brackets is kept, of bounded depth and without recursion. Brackets that do not match are
mended rather than refused: an opening one where none can stand closes its predecessor, a closing one
without a partner is passed over.
"""

from __future__ import annotations

import re

from qwendet.answers.boxes import BoxTally
from qwendet.answers.corners import LooseCorners
from qwendet.answers.frames import FrameStack, ListFrame, ObjectFrame
from qwendet.answers.keys import (
    coordinate_index,
    corner_index,
    is_box_key,
    is_label_key,
    is_points_name,
    label_rank,
)
from qwendet.answers.names import LabelText, name_after, name_before
from qwendet.answers.plain import as_number, is_written_box, numbers_in
from qwendet.answers.table import coordinate_columns, read_row
from qwendet.answers.tokens import Token, is_json, next_token

# Keys are looked at again for every value under them, which must not take long.
_LONGEST_KEY = 200
# What may follow a thought without being an answer.
_SAID = re.compile(r"(?:[^\w\[{<]++|<[^<>]*+>|<)*+[\w\[{]")


class AnswerReader:
    """Reads one answer.

    Args:
        text: what the model wrote.

    Attributes:
        tally: the boxes and failures.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tally = BoxTally()
        self._position = 0
        self._opened_until = 0  # end of the last text that was read as JSON itself
        self._stack = FrameStack()
        self._outside_from = 0  # index after the last bracket that closed at the outermost level
        self._ref = ""
        self._ref_start: int | None = None  # None once a box has taken it
        self._corners = LooseCorners(text, self.tally)
        self._thought = (0, 0, len(text))  # boxes and failures counted while thinking, and where that ended
        self._is_thinking = False
        self._columns: list[int] | None = None  # of the coordinates in a table that has a header
        self._has_lines = False  # a box of plain text was read

    def read(self) -> BoxTally:
        """Read all of the text. Call it once."""
        while token := next_token(self.text, self._position, inside=bool(self._stack)):
            self._position = token.end
            self._take(token)
        self._cut(len(self.text))
        boxes, failures, end = self._thought
        if _SAID.match(self.text, end):
            del self.tally.found[:boxes]
            self.tally.rejected -= failures
        self.tally.found.sort(key=lambda box: box.opened)  # an unclosed bracket may come late
        return self.tally

    def _take(self, token: Token) -> None:
        match token.kind:
            case "open_object":
                self._open_object(token)
            case "open_list":
                self._open_list(token)
            case "close_object":
                self._close_brace(token.end)
            case "close_list":
                self._close_bracket(token.end)
            case "comma":
                if not self._stack.awaits_box:
                    self._stack.end_value()
            case "key":
                self._take_key(token)
            case "number":
                self._take_number(token)
            case "string" | "word":
                self._take_text(token)
            case "written":
                self._take_written_numbers(token)
            case "line":
                self._take_line(token)
            case "header":
                self._columns = coordinate_columns(token.value)
            case "row":
                self._take_row(token)
            case "ratio":
                if isinstance(top := self._stack.top, ListFrame):
                    top.worded = True
            case "semicolon":
                self._split_list(token)
            case "ref":
                self._take_ref(token)
            case "box_start":
                self._open_tag(token)
            case "box_end":
                self._close_tag(token.end)
            case "thought":
                self._is_thinking = True
            case "thought_end" | "answer" | "end":
                self._cut(token.start)
                self._outside_from = token.end
                if token.kind == "thought_end" or (token.kind == "answer" and self._is_thinking):
                    self._thought = (len(self.tally.found), self.tally.rejected, token.end)
                    self._is_thinking = False
            case "cut" | "blank" | "points":
                pass

    def _open_object(self, token: Token) -> None:
        while isinstance(top := self._stack.top, ListFrame) and top.numbers and not top.tag:
            self._close_list(token.start)  # its closing bracket is missing
        if isinstance(top, ObjectFrame) and not top.key:  # a stray brace, or a closing one is missing
            self._close_object(token.start)
        owner = self._stack.owner
        self._stack.push(ObjectFrame(token.start, under=owner.key if owner else ""))

    def _open_list(self, token: Token) -> None:
        top, name = self._stack.top, ""
        if isinstance(top, ListFrame) and top.promised and len(top.numbers) == 4 and not top.tag:
            self._close_list(token.start)  # its closing bracket is missing
            top = self._stack.top
        if isinstance(top, ListFrame):
            name = top.name
        elif top is None:
            name = name_before(self.text, self._outside_from, token.start) or self._ref
        promised = self._stack.promises_box
        paired = promised or self._stack.is_value
        frame = ListFrame(token.start, self._stack.owner, name, promised, paired)
        self._stack.push(frame)
        frame.skipped = frame.skipped or is_points_name(name)

    def _open_tag(self, token: Token) -> None:
        while isinstance(top := self._stack.top, ListFrame) and (top.tag or top.numbers):
            self._close_list(token.start)
        start = token.start if self._ref_start is None else self._ref_start
        self._ref_start = None
        tally, name = self.tally.total, self._ref
        if not name and top is None:
            name = name_before(self.text, self._outside_from, token.start)
        self._stack.push(
            ListFrame(start, self._stack.owner, name, promised=True, paired=True, tag=True, tally=tally)
        )

    def _take_ref(self, token: Token) -> None:
        top, label = self._stack.top, token.value.strip()
        if isinstance(top, ObjectFrame) and top.key:  # used as a value
            top.texts.append(LabelText(token.start, top.key, label))
            return
        self._cut(token.start)
        self._ref, self._ref_start = label, token.start
        self._outside_from = token.end

    def _take_key(self, token: Token) -> None:
        while isinstance(top := self._stack.top, ListFrame) and top.owner:
            is_done = top.numbers or top.tag or (top.promised and top.owner.settled)
            if not is_done:
                break
            self._close_list(token.start)
        if isinstance(top, ListFrame):
            top = ObjectFrame(token.start, under=top.owner.key if top.owner else "", implied=True)
            self._stack.push(top)
        if top is not None:
            top.key = token.value[:_LONGEST_KEY]

    def _take_number(self, token: Token) -> None:
        top, number = self._stack.top, as_number(token.value)
        if isinstance(top, ListFrame):
            top.numbers.append(number)
        elif top is not None and is_box_key(top.key):  # the bracket is missing
            self._stack.push(ListFrame(token.start, top, "", promised=True, implied=True, numbers=[number]))
        elif top is not None:
            self.tally.take_number(top, token.start, token.end, number)

    def _take_line(self, token: Token) -> None:
        """Take a line of plain text: ``1,2,3,4 cat``; one that the end of the text cut is a failure."""
        numbers = numbers_in(token.value)
        if len(numbers) == 4:
            name = name_before(self.text, self._outside_from, token.start) or name_after(self.text, token.end)
            self.tally.count_box(ListFrame(token.start, None, name, numbers=numbers), token.end)
            self._outside_from, self._has_lines = token.end, True
        elif self._has_lines:
            self.tally.reject(None)

    def _take_row(self, token: Token) -> None:
        """Take a row of a table; one without some of the header's coordinates is a failure."""
        name, numbers = read_row(token.value, self._columns)
        if not numbers:
            self._position = token.start + 1  # there may be a box in it that no column holds
            return
        self._outside_from = token.end
        if len(numbers) == 4:
            self.tally.count_box(ListFrame(token.start, None, name, numbers=numbers), token.end)
        else:
            self.tally.reject(None)

    def _split_list(self, token: Token) -> None:
        """Begin the next box of a list in which semicolons part them: ``[[1,2,3,4;5,6,7,8]]``."""
        top = self._stack.top
        if isinstance(top, ListFrame) and len(top.numbers) == 4 and not top.tag:
            self._close_list(token.start)
            self._stack.push(ListFrame(token.end, top.owner, top.name, top.promised, top.paired))

    def _take_text(self, token: Token) -> None:
        top, owner = self._stack.top, self._stack.owner
        if token.kind == "string" and self._holds_numbers(token.value):
            self._take_written_numbers(token)
            return
        if token.kind == "string" and self._holds_json(token):
            self._position, self._opened_until = token.start + 1, token.end
            return
        if isinstance(top, ListFrame):
            top.worded = top.worded or token.kind == "word"
            if token.kind == "string" and not (top.name and top.numbers):  # ["cat", 1, 2, 3, 4, "red"]
                top.name = token.value
        elif top is not None and not top.key and is_label_key(token.value):  # its colon is missing
            top.key = token.value
            return
        if owner is not None and owner.key:
            owner.texts.append(LabelText(token.start, owner.key, token.value))
        self._stack.end_value()

    def _holds_numbers(self, text: str) -> bool:
        """Whether a text where one stands now is a box, a number of one, or a corner."""
        top = self._stack.top
        if self._stack.promises_box or (
            isinstance(top, ObjectFrame) and coordinate_index(top.key) is not None
        ):
            return bool(numbers_in(text))
        has_free_key = isinstance(top, ObjectFrame) and top.key and label_rank(top.key) is None
        is_item = isinstance(top, ListFrame) and top.owner is None and text.startswith(("[", "(", "<"))
        return bool(has_free_key or is_item) and is_written_box(text)

    def _holds_json(self, token: Token) -> bool:
        """Whether a text is JSON itself, as the arguments of a tool call are; those in it are not."""
        is_label = isinstance(top := self._stack.top, ObjectFrame) and label_rank(top.key) is not None
        is_inside = token.start < self._opened_until
        return not (is_label or is_inside) and is_json(token.value)

    def _take_written_numbers(self, token: Token) -> None:
        numbers, top = numbers_in(token.value), self._stack.top
        if isinstance(top, ObjectFrame) and coordinate_index(top.key) is not None:
            self.tally.take_number(top, token.start, token.end, numbers[0])
            return
        if isinstance(top, ListFrame) and (len(numbers) == 1 or top.numbers):  # ["1", "2", "3", "4"]
            top.numbers += numbers
            return
        name = top.name if isinstance(top, ListFrame) else ""
        if top is None:
            name = name_before(self.text, self._outside_from, token.start) or self._ref
        self._stack.push(ListFrame(token.start, self._stack.owner, name, promised=True, numbers=numbers))
        self._close_list(token.end)

    def _close_brace(self, end: int) -> None:
        top = self._stack.top
        if isinstance(top, ListFrame):
            if top.owner is None:
                return
            while self._stack and self._stack.top is not top.owner:
                self._close_top(end)
        if self._stack:
            self._close_object(end)

    def _close_bracket(self, end: int) -> None:
        if isinstance(top := self._stack.top, ObjectFrame) and top.implied:
            self._close_object(end)
        if isinstance(top := self._stack.top, ListFrame) and not top.tag:
            self._close_list(end)

    def _close_tag(self, end: int) -> None:
        if not self._stack.has_tag:
            return
        while not (isinstance(top := self._stack.top, ListFrame) and top.tag):
            self._close_top(end)
        self._close_list(end)
        if top.tally == self.tally.total and not top.worded:
            self.tally.reject(top.owner)

    def _close_top(self, end: int) -> None:
        if isinstance(self._stack.top, ListFrame):
            self._close_list(end)
        else:
            self._close_object(end)

    def _close_object(self, end: int) -> None:
        frame = self._stack.pop()
        assert isinstance(frame, ObjectFrame)
        top = self._stack.top
        if frame.is_point and isinstance(top, ListFrame) and top.paired:
            top.points += [frame.point["x"], frame.point["y"]]
        elif frame.is_point and isinstance(top, ObjectFrame) and corner_index(top.key) is not None:
            self.tally.take_corner(top, frame.start, end, frame.point["x"], frame.point["y"])
        else:
            self.tally.close_object(frame, self._stack.owner, end)
        self._closed(end)

    def _close_list(self, end: int) -> None:
        frame = self._stack.pop()
        assert isinstance(frame, ListFrame)
        frame.numbers = frame.numbers or frame.points
        parent, count = self._stack.top, len(frame.numbers)
        if isinstance(parent, ListFrame):
            parent.worded = parent.worded or frame.worded
        outermost = parent is None
        if count != 2:
            self._corners.interrupt()
        if frame.skipped:
            if frame.owner is not None:
                frame.owner.settled = True
        elif isinstance(parent, ListFrame) and _is_corner(frame, parent):
            parent.numbers += frame.numbers
            parent.worded = parent.worded or (parent.tag and count != 2)
        elif isinstance(parent, ObjectFrame) and count == 2 and corner_index(parent.key) is not None:
            self.tally.take_corner(parent, frame.start, end, *frame.numbers)
        elif (
            count == 2
            and not isinstance(parent, ListFrame)
            and self._corners.holds(frame, end, outermost=outermost)
        ):
            self._corners.take(frame, end, outermost=outermost)
        else:
            self.tally.count_list(frame, end)
        self._closed(end)

    def _closed(self, end: int) -> None:
        self._stack.end_value()
        top = self._stack.top
        if top is None:
            self._outside_from = end
        elif isinstance(top, ListFrame) and not (top.numbers or top.tag):
            top.start = end  # what was closed is no part of numbers that may follow

    def _cut(self, end: int) -> None:
        """Close what is open where the text, or the part of it that brackets can span, ends.

        At most one box was interrupted: that of the innermost open bracket that holds none yet.
        """
        counted = False
        while top := self._stack.top:
            if isinstance(top, ListFrame):
                self._stack.pop()
                counted = self._cut_list(top, end, counted)
                continue
            if not (counted or top.settled or top.skipped):
                self.tally.reject(top)
                counted = True
            self._close_object(end)
        self._corners.forget()

    def _cut_list(self, frame: ListFrame, end: int, counted: bool) -> bool:
        empty_tag = frame.tag and frame.tally == self.tally.total and not frame.worded
        if counted or frame.skipped:
            return True
        if frame.tag and len(frame.numbers) == 4 and not frame.worded:
            self.tally.count_box(frame, end)
        elif empty_tag or (frame.numbers and (frame.promised or not frame.worded)):
            self.tally.reject(frame.owner)
        else:
            return False
        return True


def _is_corner(frame: ListFrame, parent: ListFrame) -> bool:
    """Whether a list is part of the box that its parent is; a box token makes one even of broken parts."""
    count = len(frame.numbers)
    is_stray = 0 < len(parent.numbers) < 4 and 0 < count < 4  # a bracket in the middle of the numbers
    return (parent.paired and count == 2) or (
        parent.promised and (is_stray or (parent.tag and count not in {0, 4}))
    )
