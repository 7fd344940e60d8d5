"""Numbers that are a box though no bracket of JSON holds them: the patterns, and reading them.

| form | example |
|---|---|
| plain text of Qwen2.5-VL, one box a line | ``1,2,3,4 red car`` |
| its HTML | ``data-bbox="1 2 3 4"`` |
| named corners, also as XML elements | ``x1=1, y1=2, x2=3, y2=4`` |
| one token a number, as Rex-Omni writes them | ``<1><2><3><4>`` |
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
    \b(?:x_?(?:1|min)|left)\W{{1,6}}?{_NUMBER}{_GAP}(?:y_?(?:1|min)|top)\W{{1,6}}?{_NUMBER}
    {_GAP}(?:x_?(?:2|max)|right)\W{{1,6}}?{_NUMBER}{_GAP}(?:y_?(?:2|max)|bottom)\W{{1,6}}?{_NUMBER}
"""
HTML_ATTRIBUTE = r"""\b(?:data-)?bbox\s*+=\s*+["'][^"'\r\n]*+"""
NUMBER_TOKEN = r"<[0-9]{1,5}>"
SET_OF_FOUR = rf"\{{\s*+{_FOUR}\s*+\}}"
# A line of plain text, with what may stand before its numbers; ``fewer`` is one that the end of the text cut.
LINE = rf"""
    (?:^[\ \t]*+(?:[-*•]\ |[0-9]{{1,3}}[.)]\ )?|(?<=[:：>])[\ \t]*+)
    (?P<four>{_FOUR})(?=[\ \t.]*+(?:[\r\n<]|\Z)|[:：]?[\ \t]++[(\w])
  | ^[\ \t]*+(?P<fewer>{_NUMBER}(?:[,，][\ \t]*+{_NUMBER}){{1,2}}[,，]?)\s*+\Z
"""
_LOOSE_NUMERAL = re.compile(rf"(?<![\w.])({NUMERAL}){AFTER_NUMERAL}", re.VERBOSE | re.IGNORECASE)
_TAG = r"(?:<[^<>]{1,16}>)?"
_WRITTEN_BOX = re.compile(
    rf"{_TAG}[\s(（\[]{{0,4}}+(?:{_NUMBER}[\s,，()（）\[\]]{{1,6}}+){{3}}{_NUMBER}[\s)）\]]{{0,4}}+{_TAG}"
)

# Between the two corners of a box, as in "(1, 2), (3, 4)" and "top-left (1, 2) and bottom-right (3, 4)".
_NEXT_CORNER = re.compile(
    r"""[\s,，]{0,3}+ (?: (?:to|到|至|-|–|→)?
      | (?:and\s|和)?(?:the\s)?(?:(?:bottom|lower)[\s-]?right(?:\s(?:corner|at|is)){0,3}+
        | 右下角?的?(?:坐标)?[是为在]?)
    ) [\s:：=]{0,3}+[(（]\s*+[-+.\d]""",
    re.VERBOSE | re.IGNORECASE,
)


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


def begins_next_corner(text: str, end: int) -> bool:
    """Whether a corner that ends here is followed by another of the same box.

    Example:
        >>> [begins_next_corner(text, 5) for text in ("(1,2),(3,4)", "(1,2) to (3,4)", "(1,2) and (3,4)")]
        [True, True, False]
    """
    return _NEXT_CORNER.match(text, end) is not None
