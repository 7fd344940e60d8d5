"""Boxes to answer text and back.

Answers are written in the family's own grounding format, JSON or box tokens, and read as models really write
them, whatever the family:

    [{"bbox_2d": [12, 34, 56, 78], "label": "red circle"}]

Coordinates are xyxy in the family's frame of answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qwendet.answers.reader import AnswerReader
from qwendet.answers.records import Box
from qwendet.families.chat import BOX_TEXT
from qwendet.families.family import AnswerForm


class Labelled(Protocol):
    """A box and its label; a sample's object is one."""

    @property
    def bbox_2d(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2."""

    @property
    def desc(self) -> str:
        """The label."""


@dataclass(frozen=True, slots=True)
class ParsedObject:
    """One box of an answer.

    Attributes:
        bbox_2d: x1, y1, x2, y2 as written, finite, with x1 < x2 and y1 < y2; in the frame of
            answers.
        start: index in the text of the object's first character (of the box's alone, where an object
            holds several boxes).
    """

    bbox_2d: tuple[float, float, float, float]
    desc: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """All that could be read of an answer.

    Attributes:
        rejected: number of boxes that were left out because they are incomplete or impossible.
    """

    objects: tuple[ParsedObject, ...]
    rejected: int


def format_answer(objects: Sequence[Labelled], form: AnswerForm = "json") -> str:
    """Write the answer that the model is to learn: integers, sorted by top, then left.

    Returns:
        The answer. A box that rounding would leave without width or height becomes one pixel wide or high.

    Example:
        >>> objects = [ParsedObject((5, 9.6, 8, 12), "cat", 0, 0), ParsedObject((1, 2, 1.2, 8), "dog", 0, 0)]
        >>> format_answer(objects)
        '[{"bbox_2d": [1, 2, 2, 8], "label": "dog"}, {"bbox_2d": [5, 10, 8, 12], "label": "cat"}]'
    """
    rows = as_written(objects)
    if form == "box_tokens" and rows:
        return "".join(
            BOX_TEXT.format(label=label, x1=x1, y1=y1, x2=x2, y2=y2) for (x1, y1, x2, y2), label in rows
        )
    return json.dumps([{"bbox_2d": box, "label": label} for box, label in rows], ensure_ascii=False)


def as_written(objects: Sequence[Labelled]) -> list[tuple[tuple[int, int, int, int], str]]:
    """Rounded boxes and labels in the order of answers; arguments as for :func:`format_answer`."""
    rows = [(_round_box(item.bbox_2d), item.desc) for item in objects]
    return sorted(rows, key=lambda row: (row[0][1], row[0][0]))


def _round_box(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = map(round, box)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def parse_answer(text: str) -> ParsedAnswer:
    """Read the boxes of an answer. Never raises, never evaluates, takes time linear in the text.

    docs/evaluation.md has the forms that are read. Words in place of numbers, as in ``[x1, y1, x2, y2]``, are
    a template from the prompt and count for nothing; nothing is computed from x, y, width and height.

    Args:
        text: what the model wrote, whole or cut short, with prose, fences and special tokens.

    Returns:
        Every complete box in order, and how many incomplete or impossible ones were left out.

    Example:
        >>> answer = parse_answer('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5, 6')
        >>> answer.objects[0]
        ParsedObject(bbox_2d=(1.0, 2.0, 3.0, 4.0), desc='cat', start=1, end=42)
        >>> answer.rejected
        1
    """
    found = AnswerReader(text).read()
    objects = tuple(parsed for box in found if (parsed := _parsed(box)))
    return ParsedAnswer(objects, len(found) - len(objects))


def _parsed(box: Box) -> ParsedObject | None:
    """The box, if it is of four finite numbers with x1 < x2 and y1 < y2."""
    if len(box.numbers) != 4 or not all(map(math.isfinite, box.numbers)):
        return None
    x1, y1, x2, y2 = box.numbers
    return ParsedObject((x1, y1, x2, y2), box.desc, box.start, box.end) if x1 < x2 and y1 < y2 else None
