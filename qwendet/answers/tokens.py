"""Tokens of text that is almost JSON, each with its place in the text.

Models use either quote, forget one, escape twice, put box tokens between brackets and stop in mid-word, so
a JSON reader would refuse most of what they write. Here nothing is refused: what is no token is skipped,
among it every bracket that no number follows. (json_repair loses repeated keys and all positions, takes a
number that was cut for a whole one, and needs quadratic time for ``["["["…`` and a deep stack for ``[[[…``.)

Repeats in the patterns are possessive or bounded, so that a text costs time linear in its length.
"""

from __future__ import annotations

import json
import math
import re
import string
from typing import Literal, NamedTuple

from qwendet.answers.keys import BOX_NAME
from qwendet.answers.records import Box

Place = Literal["prose", "object", "value"]  # outside objects, in one, after a key of one


class Token(NamedTuple):
    """One token.

    Of its kinds, ``open`` and ``close`` are braces, ``numbers`` is ``[1, 2, 3, 4]`` or several such lists,
    ``ref`` a label's token with the label, ``box`` a box token with its numbers, ``answer`` is ``<answer>``,
    ``end`` another mark that no object reaches over (a code fence, the end of turn); ``skip`` says nothing.
    The others are key, string, word and thought_end.
    """

    kind: str
    start: int
    end: int
    value: str = ""  # a string without its quotes and escapes, a word, a key, a label
    is_open: bool = False  # no bracket closes its numbers


_OPEN, _CLOSE = r"[\[(（［【]", r"[\])）］】]"
_BETWEEN = rf"(?:[\s,，;；]|{_OPEN}|{_CLOSE}|\\[nrt])"  # line breaks may be escaped twice
_PLAIN = r"(?:[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++))"
_DIGITS = rf"(?:{_PLAIN}(?:e[-+]?+[0-9]++)?+(?!\w|\.[0-9]))"
_NUMERAL = rf"(?:{_DIGITS}|[-+]?+(?:nan|inf(?:inity)?|null|none)(?!\w))"
_REST = rf"(?:{_BETWEEN}++{_NUMERAL})*+(?:[\s,，]*+{_CLOSE})?+"
_NUMBERS = rf"{_OPEN}(?:\s|\\[nrt])*+{_NUMERAL}{_REST}"
# Box tokens of any release, Rex-Omni's numbers <1><2><3><4> in them, and HTML.
_BOX = rf"""
    (?:(?:<\|?\ ?b?box(?:_start)?\ ?\|?>\s*+)++|\bdata-bbox\s*+=\s*+["'])
    (?:[^\w<{{"'`]|<?{_NUMERAL}>?|(?:and|和|及)(?!\w))*+(?:<\|\ ?box_end\ ?\|>|</b?box>)?+
"""
_MARKS = rf"""
    (?P<thought_end>[<◁\[]/(?:\w{{1,9}}:)?(?:think(?:ing)?|thought|reasoning|analysis)\b[>▷\]]?
        |<channel\|>|<\|channel\|>final<\|message\|>|<\|(?:end_of_thought|inner_suffix)\|>)
  | (?P<answer><answer>)
  | (?P<end>```|</answer>|<\|(?:im_start|im_end|endoftext)\|>)
  | (?P<ref><\|?\ ?(?:object_)?ref(?:_start)?\ ?\|?>(?P<name>[^<]*+))
  | (?P<box>{_BOX})
  | (?P<skip></ref>|<\|\ ?object_ref_end\ ?\|>|(?<![^\s,\[{{])//[^\r\n]*+|\b(?:null|none)\b)
  | (?P<open>[{{｛](?!\s*+[0-9]))
"""
# A quote closes a string only before what may follow one, so that `24" monitor` and 'man's hat' stay
# whole. A string whose quote is missing ends with its line, or where the next key stands.
_CLOSING = r"""(?P=quote)(?=\s*+(?:[,:：=;}\])｝］】）]|\\[nrt]|\Z)|[ \t]*+[\r\n]|\s++\\?["'])"""
_NEXT_KEY = r"""(?:[,{\[]\s*+)?(?:"|(?P=quote))[\w\ ]{1,40}+\\?["']\s*+[:：]"""
_OBJECT = rf"""{_MARKS}
  | (?P<numbers>{_NUMBERS}|(?<![\w.]){_DIGITS}(?!\s*+[:：]){_REST})
  | (?P<close>[}}｝])
  | (?P<string>(?P<quote>\\?["'])
        (?P<body>(?:[^\\\r\n"',{{\[]++|(?!{_CLOSING}|{_NEXT_KEY})(?:["',{{\[]|\\[^\r\n]))*+)
        (?P<closed>(?P=quote)(?P<colon>\s*+[:：=])?+)?+)
  | (?P<word>\w[^\r\n,，:：{{}}\[\]()｛｝［］【】（）<`]*+(?P<word_colon>[:：])?+)
"""
# A key that lost a quote or its colon, or has a stray mark.
_DAMAGED_KEY = rf"""\\?["']?(?:
    {BOX_NAME}\W{{0,6}}?(?={_OPEN}\s*+[-+.0-9]|(?<=\}})[-+.0-9])
  | (?:label|name)["']{{0,2}}+[^\w{{,"']{{0,6}}+(?=\\?["'][^\s,:=)}}\]])
)"""
_PATTERNS = {
    "prose": rf"""{_MARKS} | (?P<numbers>{_NUMBERS})
        | (?P<key>["'](?:{BOX_NAME}|label)["']\s*+[:：])""",
    "object": rf"(?P<key>{_DAMAGED_KEY}) | {_OBJECT}",
    "value": _OBJECT,
}
_NO_KEY = string.punctuation + string.whitespace + "：＝"
_FLAGS = re.VERBOSE | re.IGNORECASE | re.MULTILINE
_SCANNERS = {place: re.compile(pattern, _FLAGS) for place, pattern in _PATTERNS.items()}
NOTHING_MORE = re.compile(rf"{_BETWEEN}*+\Z")
_RUN = re.compile(rf"{_OPEN}?(?:(?!{_OPEN}|{_CLOSE}|[;；]|>[ ]?,[ ]?<).)++{_CLOSE}?", re.DOTALL)
_NUMBER = re.compile(rf"(?:(?<![\w.])|(?<=\\[nrt])){_NUMERAL}", re.IGNORECASE)
_ESCAPE = re.compile(r"""(?:\\u[0-9a-fA-F]{4})++|\\["'\\/bfnrt]""")


def next_token(text: str, position: int, place: Place) -> Token | None:
    """Find the first token at or after a position; in prose, quotes, bare numerals and words are none.

    Example:
        >>> next_token('so: {"dog": "cat"}', 5, "object")
        Token(kind='key', start=5, end=11, value='dog', is_open=False)
    """
    match = _SCANNERS[place].search(text, position)
    if match is None:
        return None
    kind, (start, end) = match.lastgroup or "", match.span()
    match kind:
        case "string":
            return _string_token(match, start, end)
        case "word":
            value = match[0].rstrip(":： ").strip("\"'“”‘’")
            return Token("key" if match["word_colon"] else "word", start, end, value)
        case "key":
            return Token("key", start, end, match[0].strip(_NO_KEY))
        case "ref":
            return Token("ref", start, end, match["name"].strip())
        case "numbers" | "box":
            return Token(kind, start, end, is_open=match[0][-1] not in ">])）］】")
    return Token(kind, start, end)


def _string_token(match: re.Match[str], start: int, end: int) -> Token:
    value = match["body"]
    for _ in match["quote"]:  # an escaped quote holds a text that is escaped twice
        value = _ESCAPE.sub(lambda escape: "'" if escape[0] == r"\'" else json.loads(f'"{escape[0]}"'), value)
    if match["colon"]:
        return Token("key", start, end, value)
    if match["closed"]:
        return Token("string", start, end, value)
    return Token("skip" if end == len(match.string) else "string", start, end, value.rstrip(" \t,}]"))


def runs_in(text: str, start: int, end: int) -> list[Box]:
    """The numbers of ``text[start:end]``, parted where brackets open and close; NaN for a missing number.

    Example:
        >>> runs_in("[[1, 2], [3, null]]", 0, 19)[1]
        Box(numbers=[3.0, nan], start=9, end=18, key='', desc='')
    """
    runs: list[Box] = []
    for piece in _RUN.finditer(text, start, end):
        if numerals := _NUMBER.findall(piece[0]):
            numbers = [math.nan if numeral[-1] in "lLeE" else float(numeral) for numeral in numerals]
            if (
                runs and runs[-1].end == piece.start() and piece[0][0].isdigit()
            ):  # a stray bracket in the middle of a number
                numbers = runs.pop().numbers + numbers
            runs.append(Box(numbers, *piece.span()))
    return runs
