"""What a box is called: by the text before or after it, or by the texts of its object."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from qwendet.data.answer_keys import corner_index, is_name, label_rank

_SENTENCE_END = re.compile(
    r"\b(?:is|are|at|in|from|to|and|or|then|with|box|bbox|boxes|coordinates)\W*$|\(s\)$", re.IGNORECASE
)
_NUMBERING = re.compile(r"^\s*(?:\d{1,3}[.)]\s+)?[\s\"'`*#•,;.，、。(-]*")
_LONGEST_NAME = 200
_MOST_WORDS = 3  # of a name before a blank; more of them are a sentence


class LabelText(NamedTuple):
    """A text inside an object: where it stands, its key, its value."""

    start: int
    key: str
    value: str


def name_before(text: str, floor: int, start: int) -> str:
    """The name that stands before a box outside any bracket, else the empty string.

    It ends in a colon (``Red car: [1, 2, 3, 4]``), touches the box (``car[[1, 2, 3, 4]]``) or is a few words
    on the same line (``red car [1, 2, 3, 4]``); a sentence such as ``The box is [1, 2, 3, 4]`` names nothing.

    Args:
        text: the whole answer.
        floor: index after the previous box, before which nothing is looked at.
        start: index of the box's bracket.

    Example:
        >>> name_before("- **Red car**: [1, 2, 3, 4]", 0, 15)
        'Red car'
    """
    if text.startswith("([", start):  # a call such as array([…])
        return ""
    line = text[max(floor, start - _LONGEST_NAME) : start].rpartition("\n")[2].rpartition(">")[2]
    if line.lstrip().startswith("|"):  # a row of a table
        line = line.strip().strip("|").rpartition("|")[2].strip() + ":"
    name = line.rstrip()
    is_apart = name != line and not name.endswith((":", "："))
    name = re.split(r"[:：]\s", name)[-1]
    name = _NUMBERING.sub("", name).rstrip(" \"'`*:：=-(")
    is_sentence = (is_apart and len(name.split()) > _MOST_WORDS) or _SENTENCE_END.search(name)
    is_code = "<" in name or "\\" in name
    if is_sentence or is_code or corner_index(name) is not None or not is_name(name):
        return ""
    return name


def name_after(text: str, end: int) -> str:
    """The rest of the line after a box of plain text, which names it: ``1,2,3,4 red car``.

    Args:
        text: the whole answer.
        end: index after the box.

    Example:
        >>> name_after("1,2,3,4 red car<|im_end|>", 7)
        'red car'
    """
    line = re.split(r"[\r\n<]", text[end : end + _LONGEST_NAME])[0]
    return line.strip(" \t:：.\"'`*")


def pair_labels(starts: Sequence[int], texts: Sequence[LabelText]) -> list[str]:
    """The label of each box of one object.

    An object may repeat its keys (``{"name": "a", "bbox": […], "name": "b", "bbox": […]}``). If a label
    comes first, each box takes the last label before it; else the first one after it.

    Args:
        starts: positions of the object's boxes, ascending.
        texts: the object's texts, in order.

    Returns:
        One label a box; empty strings if no text is under a key that holds labels.

    Example:
        >>> texts = [LabelText(1, "name", "a"), LabelText(20, "name", "b")]
        >>> pair_labels([10, 30], texts), pair_labels([0, 10], texts)
        (['a', 'b'], ['a', 'b'])
    """
    if not starts:
        return []
    ranked = [(rank, text) for text in texts if (rank := label_rank(text.key)) is not None]
    if not ranked:
        return [""] * len(starts)
    best = min(rank for rank, _ in ranked)
    labels = [text for rank, text in ranked if rank == best]
    places = [text.start for text in labels]
    if len(labels) == len(starts) and (places[-1] < starts[0] or places[0] > starts[-1]):
        return [text.value for text in labels]  # a list of names beside a list of boxes
    label_first = places[0] < starts[0]
    indices = [bisect_left(places, start) - label_first for start in starts]
    return [labels[min(index, len(labels) - 1)].value for index in indices]
