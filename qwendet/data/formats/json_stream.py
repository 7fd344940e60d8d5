"""The elements of a large JSON file's top-level lists, one at a time: memory does not grow with the file.

Python's own decoder is used on a window of the text, so that ``NaN``, which numpy's users write and strict
parsers die of, arrives as a value that can be refused with its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from qwendet.errors import DataError
from qwendet.files import tell_unreadable

WINDOW = 1 << 20
"""Characters read at a time."""
MAX_VALUE = 1 << 26
"""Characters of one element; more is a broken file, whose end would otherwise be looked for in memory."""
BYTE_ORDER_MARK = "\ufeff"
AFTER_VALUE = frozenset(",:]} \t\r\n")
FIX = "write the file again: it is broken there"


class Element(NamedTuple):
    """An element of a list, and where in it; or, at -1, the value of a key, ``[]`` before those of a list.

    Attributes:
        start: first byte in the file.
        end: byte behind the last one.
    """

    key: str
    at: int
    value: Any
    start: int
    end: int


def stream_lists(path: Path) -> Iterator[Element]:
    """Go through the lists at the top level of a JSON object.

    Raises:
        DataError: naming the place, if the file is unreadable, broken or no object.
    """
    yield from _streamed(path, _members)


def records(file: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of each record: elements of a list, or a line each, as text where it is no JSON."""
    if file.suffix.lower() != ".jsonl":
        for found in _streamed(file, lambda window: _elements(window, "")):
            yield f"{file}: [{found.at}]", found.value
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield f"{file}:{number}", json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):
                    yield f"{file}:{number}", repr(line[:60])


def _streamed(path: Path, read: Callable[[_Window], Iterator[Element]]) -> Iterator[Element]:
    try:
        with tell_unreadable(path), path.open(encoding="utf-8", newline="") as file:
            yield from read(_Window(path, file))
    except UnicodeDecodeError as error:
        raise DataError(f"the file is not UTF-8 ({error.reason})", str(path), "save it as UTF-8") from error


def _members(window: _Window) -> Iterator[Element]:
    window.expect("{", "a JSON object")
    if window.peek() == "}":
        return
    while True:
        key, *_ = window.value()
        if not isinstance(key, str):
            raise window.error(f"expected a key, got {key!r}")
        window.expect(":", f"a colon after {key!r}")
        if window.peek() == "[":
            yield Element(key, -1, [], 0, 0)
            yield from _elements(window, key)
        else:
            yield Element(key, -1, *window.value())
        if not window.goes_on("}", key):
            break
    if window.peek():
        raise window.error("expected the end of the file")


def _elements(window: _Window, key: str) -> Iterator[Element]:
    window.expect("[", "a list")
    if window.peek() == "]":
        window.expect("]", "its end")
        return
    index = 0
    while True:
        yield Element(key, index, *window.value(f"{key}[{index}]"))
        if not window.goes_on("]", f"{key}[{index}]"):
            return
        index += 1


class _Window:
    """A piece of the text, and how far it has been read."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path = path
        self._file = file
        self._text = ""
        self._at = 0
        self._before = 0
        self._bytes = 0  # up to where it has been read
        self._is_last = False
        self._decoder = json.JSONDecoder()

    def error(self, what: str, within: str = "") -> DataError:
        """An error at the current place."""
        place = f"character {self._before + self._at + 1:,}"
        return DataError(what, ": ".join(part for part in (str(self._path), within, place) if part), FIX)

    def _take(self, end: int) -> None:
        self._bytes += len(self._text[self._at : end].encode())
        self._at = end

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if not character.isspace() and character != BYTE_ORDER_MARK:
                    return character
                self._take(self._at + 1)
            if self._is_last:
                return ""
            self._read_on()

    def expect(self, character: str, meaning: str) -> None:
        """Take one character."""
        found = self.peek()
        if found != character:
            raise self.error(f"expected {meaning}, got {found!r}" if found else "the file ends too early")
        self._take(self._at + 1)

    def goes_on(self, end: str, within: str) -> bool:
        """Take a comma, or the end of what is being read."""
        found = self.peek()
        if found not in (",", end) or not found:
            what = f"expected ',' or {end!r}, got {found!r}" if found else "the file ends too early"
            raise self.error(what, f"after {within}")
        self._take(self._at + 1)
        return found == ","

    def value(self, within: str = "") -> tuple[Any, int, int]:
        """Decode the next value, between which bytes it is; the window grows until it holds all of it."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_last or len(self._text) - self._at > MAX_VALUE:
                    self._at = error.pos
                    is_cut = error.pos >= len(self._text)
                    what = "the file ends too early" if is_cut else f"expected JSON ({error.msg})"
                    raise self.error(what, within) from error
            except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
                raise self.error(f"expected JSON ({error})", within) from error
            else:
                is_whole = self._text[end : end + 1] in AFTER_VALUE
                if is_whole or self._is_last:  # a number might go on
                    start = self._bytes
                    self._take(end)
                    return value, start, self._bytes
            self._read_on()

    def _read_on(self) -> None:
        rest = self._text[self._at :]
        more = self._file.read(max(WINDOW, len(rest)))
        self._before += self._at
        self._text, self._at, self._is_last = rest + more, 0, not more
