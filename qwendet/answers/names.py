"""What a box is called: by the text before or after it, or by the texts of its object."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from qwendet.answers.keys import coordinate_index, corner_index, is_box_key, is_name, label_rank

_SENTENCE_END = re.compile(
    r"\b(?:is|are|at|in|from|to|and|or|then|with|box|bbox|boxes|coordinates)\W*$|\(s\)$"
    r"|(?:[是为在于]|坐标|位置|边界框)\W*$",
    re.IGNORECASE,
)
_NUMBERING = re.compile(
    r"^\s*(?:\d{1,3}[.)]\s+)?[\s\"'`*#•,;.，、。；！？(-]*(?:(?:and|or)\s+|[和及])?", re.IGNORECASE
)
_CORNER = re.compile(
    r"(?:\b(?P<high>top|upper)|\b(?:bottom|lower))[\s_-]?(?:(?P<left>left)|right)\b[^\d()\[\]\r\n]{0,25}$"
    r"|(?:(?P<high_zh>[左右]上)|[左右]下)[^\d()\[\]（）\r\n]{0,12}$",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(?:[:：]|\*\*|^\#{1,6}\ [^\r\n]{1,80})\s{0,8}\Z", re.MULTILINE)
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
    A box after its key alone (``bbox: [1, 2, 3, 4]``) has the name of the line above, and so has one that
    begins its line below a heading (``**Red car**``, ``Red car:``).

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
    above, _, line = text[max(floor, start - _LONGEST_NAME) : start].rpartition("\n")
    line = line.rpartition(">")[2]
    if line.lstrip().startswith("|"):  # a row of a table
        line = line.strip().strip("|").rpartition("|")[2].strip() + ":"
    if line.endswith(("(", "（")):  # the box has begun: "cat (x1=1, …)"
        line = line[:-1]
    name = line.rstrip()
    is_apart = name != line and not name.endswith((":", "："))
    name = re.split(r"[:：]\s", name)[-1]
    name = _NUMBERING.sub("", name).rstrip(" \"'`*:：=-(")
    is_sentence = (is_apart and len(name.split()) > _MOST_WORDS) or _SENTENCE_END.search(name)
    name = name.replace("**", "")
    is_code = "<" in name or "\\" in name or name.count("(") > name.count(")") or _are_coordinates(name)
    if (is_box_key(name) and not is_name(name)) or (not name and _HEADING.search(above)):
        return _name_above(above)
    is_named = is_name(name) and corner_index(name) is None
    return name if is_named and not (is_sentence or is_code) else ""


def _name_above(text: str) -> str:
    """The name in the last line of a text: ``label: red car``, or a few words such as ``2. **Red car**``."""
    line = text.rstrip().rpartition("\n")[2].replace("**", "").rstrip(" :：")
    name = _NUMBERING.sub("", line)
    key, colon, value = name.partition(":")
    if colon and label_rank(key) is not None:
        return value.strip(" \"'`")
    is_short = len(name.split()) <= _MOST_WORDS and not colon
    return name if is_short and is_name(name) and not _SENTENCE_END.search(name) else ""


def corner_before(text: str, start: int) -> int | None:
    """Which corner a text says is next: 0 for the first, 2 for the second, 1 for those between; else None.

    Example:
        >>> [
        ...     corner_before(text, len(text))
        ...     for text in ("- **Top-left**: ", "右下角坐标为", "top right: ", "at ")
        ... ]
        [0, 2, 1, None]
    """
    match = _CORNER.search(text[max(0, start - 50) : start])
    if match is None:
        return None
    is_high = match["high"] or match["high_zh"]
    is_left = match["left"] or "左" in match[0]
    return (0 if is_left else 1) if is_high else (1 if is_left else 2)


def _are_coordinates(name: str) -> bool:
    """Whether this is what code assigns to: ``x1, y1, x2, y2``."""
    return all(coordinate_index(part) is not None for part in name.split(","))


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
    return line.strip(" \t:：,，.\"'`*")


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
