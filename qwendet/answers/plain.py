"""Numbers that are a box though no bracket of JSON holds them: the patterns, and reading them.

| form | example |
|---|---|
| plain text of Qwen2.5-VL, one box a line | ``1,2,3,4 red car``, ``1,2,3,4,red car`` |
| its HTML | ``data-bbox="1 2 3 4"`` |
| named corners, also as XML elements | ``x1=1, y1=2, x2=3, y2=4`` |
| a line that the name begins | ``red car,1,2,3,4`` |
| a list of YAML | ``bbox: - 1 - 2 - 3 - 4``, a number a line |
| one token a number, as Rex-Omni and Florence write them | ``<1><2><3><4>``, ``<loc_1>…`` |
| a set | ``{1, 2, 3, 4}`` |

The patterns are for ``re.VERBOSE | re.IGNORECASE | re.MULTILINE``. Repeats are possessive or bounded, so that
a text costs time linear in its length.
"""

from __future__ import annotations

import math
import re

NUMERAL = r"""
    (?:[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++|nan|inf(?:inity)?|null|none)(?:e[-+]?[0-9]++)?)
"""
AFTER_NUMERAL = r"(?:px)?(?!\w)"
_NUMBER = r"[-+]?[0-9]++(?:\.[0-9]++)?"
_FOUR = rf"{_NUMBER}(?:[,，][\ \t]*+{_NUMBER}){{3}}"
_GAP = r"(?:</\w{1,8}>)?\W{1,20}"
NAMED_CORNERS = rf"""
    \b(?:x_?(?:0|1|min|tl)|left)\W{{1,6}}?{_NUMBER}{_GAP}(?:y_?(?:0|1|min|tl)|top)\W{{1,6}}?{_NUMBER}
    {_GAP}(?:x_?(?:1|2|max|br)|right)\W{{1,6}}?{_NUMBER}{_GAP}(?:y_?(?:1|2|max|br)|bottom)\W{{1,6}}?{_NUMBER}
"""
YAML_LIST = rf"(?:(?<=box:)|(?<=box_2d:)|(?<=boxes:))(?:\s{{1,20}}+-\ {{1,4}}+{_NUMBER}(?=\s|\Z)){{4}}"
HTML_ATTRIBUTE = r"""\b(?:data-)?bbox\s*+=\s*+["'][^"'\r\n]*+"""
NUMBER_TOKEN = r"<(?:loc_)?[0-9]{1,5}>"
FOUR_TOKENS = rf"(?<![0-9]>)(?:{NUMBER_TOKEN}){{4}}(?!{NUMBER_TOKEN})"  # eight are a polygon
SET_OF_FOUR = rf"\{{\s*+{_FOUR}\s*+\}}"
# A line of plain text, with what may stand before its numbers; ``fewer`` is one that the end of the text cut.
LINE = rf"""
    (?:^[\ \t]*+(?:[-*•]\ |[0-9]{{1,3}}[.)]\ )?|(?<=[:：>=])[\ \t]*+)
    (?P<four>{_FOUR})(?=[\ \t.]*+(?:[\r\n<]|\Z)|[:：]?[\ \t]++[(\w]|[,，][\ \t]*+[^\W\d_])
  | ^[\ \t]*+(?P<fewer>{_NUMBER}(?:[,，][\ \t]*+{_NUMBER}){{1,2}}[,，]?)\s*+\Z
"""
_LOOSE_NUMERAL = re.compile(rf"(?<![\w.])(?:loc_)?({NUMERAL}){AFTER_NUMERAL}", re.VERBOSE | re.IGNORECASE)
_TAG = r"(?:<[^<>]{1,16}>)?"
_WRITTEN_BOX = re.compile(
    rf"{_TAG}[\s(（\[]{{0,4}}+(?:{_NUMBER}[\s,，()（）\[\]]{{1,6}}+){{3}}{_NUMBER}[\s)）\]]{{0,4}}+{_TAG}"
)

# Between the two corners of a box, as in "(1, 2), (3, 4)" and "(1, 2) to (3, 4)".
_BETWEEN = r"[\s,，]{0,3}+(?:to|到|至|-|–|→|\|)?[\s:：=]{0,3}+"
_NEXT_CORNER = re.compile(rf"{_BETWEEN}[(（]\s*+[-+.\d]", re.IGNORECASE)
_NEXT_BRACKET = re.compile(rf"{_BETWEEN}[(（\[［【]\s*+[-+.\d]", re.IGNORECASE)
# The end of "(1, 2), (3, 4), and (5, 6)".
_LAST_POINT = re.compile(r"[\s,，]{0,3}+(?:and|和|及)\s{0,3}+[(（][-+.\d\s,，]{3,40}+[)）]", re.IGNORECASE)


def as_number(numeral: str) -> float:
    """The value of a numeral: NaN for ``null`` and ``None``, which stand for a missing number.

    Example:
        >>> as_number("12"), as_number("-Infinity"), as_number("None")
        (12.0, -inf, nan)
    """
    if numeral.lower().lstrip("+-") in {"null", "none"}:
        return math.nan
    return float(numeral)


def numbers_in(text: str) -> list[float]:
    """The numbers written in a text.

    Example:
        >>> numbers_in("(10,20),(30,40)"), numbers_in("x1: 10px"), numbers_in("x1, y1, x2, y2")
        ([10.0, 20.0, 30.0, 40.0], [10.0], [])
    """
    return [as_number(numeral) for numeral in _LOOSE_NUMERAL.findall(text)]


def is_written_box(text: str) -> bool:
    """Whether a text is four numbers, in brackets or box tokens or neither, and nothing else.

    Example:
        >>> [is_written_box(text) for text in ("[1, 2, 3, 4]", "(1,2),(3,4)", "at [1, 2, 3, 4]", "1, 2, 3")]
        [True, True, False, False]
    """
    return _WRITTEN_BOX.fullmatch(text) is not None


def begins_next_corner(text: str, end: int, *, square: bool = False) -> bool:
    """Whether a corner that ends here is followed by another of the same box.

    Args:
        text: the whole answer.
        end: index after the corner.
        square: whether square brackets may hold one too.

    Example:
        >>> [begins_next_corner(text, 5) for text in ("(1,2),(3,4)", "(1,2) to (3,4)", "(1,2) and (3,4)")]
        [True, True, False]
    """
    return (_NEXT_BRACKET if square else _NEXT_CORNER).match(text, end) is not None


def begins_last_point(text: str, end: int) -> bool:
    """Whether points that end here are followed by the last one of their list, which no box is.

    Example:
        >>> [
        ...     begins_last_point(text, 12)
        ...     for text in ("(1,2), (3,4), and (5,6)", "(1,2), (3,4) and (5,6), (7,8)")
        ... ]
        [True, False]
    """
    match = _LAST_POINT.match(text, end)
    return match is not None and not begins_next_corner(text, match.end())
