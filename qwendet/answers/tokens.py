"""Tokens of text that is almost JSON, each with its place in the text.

Models use either quote, forget one, escape twice, put box tokens between brackets and stop in
mid-word, so a JSON reader would refuse most of what they write. Here nothing is refused: what is no
token is skipped. Repair libraries (json_repair and its like) lose duplicate keys and positions.

Repeats in the patterns are possessive or bounded, so that a text costs time linear in its length.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast

from qwendet.answers.plain import (
    AFTER_NUMERAL,
    FOUR_TOKENS,
    HTML_ATTRIBUTE,
    LINE,
    NAMED_CORNERS,
    NUMBER_TOKEN,
    NUMERAL,
    SET_OF_FOUR,
    YAML_LIST,
)
from qwendet.answers.table import HEADER, ROW

Kind = Literal[
    "open_object",
    "close_object",
    "open_list",
    "close_list",
    "comma",
    "key",
    "string",
    "number",
    "word",
    "cut",
    "written",
    "line",
    "header",
    "row",
    "semicolon",
    "ratio",
    "points",
    "blank",
    "ref",
    "box_start",
    "box_end",
    "thought",
    "thought_end",
    "answer",
    "end",
]


class Token(NamedTuple):
    """One token.

    Attributes:
        kind: what it is; ``written`` are numbers that are a box or part of one though no bracket holds them,
            ``line`` a line that begins with them, ``header`` and ``row`` lines of a table, ``ratio`` two
            numbers with a colon between them, ``cut`` a string that the end of the text interrupted,
            ``end`` a mark that no bracket reaches over (a code fence, ``<|im_end|>``, an answer tag);
            ``points`` and ``blank`` mean nothing and are told only to be passed over.
        start: index of its first character.
        end: index after its last character.
        value: the text meant: a string without its quotes and escapes, a label, a numeral.
    """

    kind: Kind
    start: int
    end: int
    value: str = ""


# A parenthesis counts as a bracket only before a number, a bracket or a quote: prose is full of the others.
_MARKS = r"""
    (?P<thought>[<◁\[]think(?:ing)?[>▷\]])
  | (?P<thought_end>[<◁\[]/think(?:ing)?\b\]?)
  | (?P<open_object>[{｛](?!\s*+[-+.\d]++,))
  | (?P<open_list>[\[［【] | [(（](?=\s*+[-+.\d(（\["']))
  | (?P<points><points?\b[^<>]*+>)
  | (?P<ref><\|?\ ?(?:object_)?ref(?:_start)?\ ?\|?>(?P<name>[^<]*+))
  | (?P<box_start><\|?\ ?b?box(?:_start)?\ ?\|?>)
  | (?P<box_end><\|\ ?box_end\ ?\|>|</b?box>)
  | (?P<answer><answer>)
  | (?P<end>```|</answer>|<\|(?:im_start|im_end|endoftext)\|>)
"""
# A quote closes a string only before what may follow one, so that `24" monitor` and 'man's hat' stay
# whole. A string whose quote is missing ends with its line, or where the next key stands.
_CLOSING = r"""(?P=quote)(?=\s*+(?:[,:：=;}\])｝］】）]|\\[nrt]|\Z)|[ \t]*+[\r\n]|\s++\\?["'])"""
_NEXT_KEY = r"""(?:[,{\[]\s*+)?(?:"|(?P=quote))[\w\ ]{1,40}+\\?["']\s*+[:：]"""
# A key that lost a quote or its colon, or has a stray mark. It is told from a text that holds a box by what
# is before it, and by a name that promises a box, or by the quote of its own value.
_BOX_NAME = r"(?:bounding[\ _-]?)?b?box(?:es)?(?:[\ _-]?(?:2d|xyxy))?(?!\w)"
_DAMAGED_KEY = rf"""
    (?<![:：=])(?<![:：=]\s)(?!(?:\\?"{_BOX_NAME}\\?"|\\?'{_BOX_NAME}\\?'|{_BOX_NAME})\s*+[:：])
    \\?["']?(?P<box_name>{_BOX_NAME})
    (?:[\\"'{{}}\]),:：=\s]|[\[(](?=\s*[:：=]|\s+[\[(])){{0,6}}?(?=[\[(]\s*+[-+.\d])
"""
_CUT_KEY = r"""(?<![:：=])(?<![:：=]\s)\\?["'](?P<cut_name>[a-z]\w{0,30}+)\s*+[:：]\s*+(?=\\?["']\w)"""
# Line breaks escaped twice, comments, and the quote after JSON that is a string in other JSON.
_BLANK = r"""\\[nrt] | (?<![^\s,\[\](){}])(?://|\#\ )[^\r\n]*+
  | (?<=[\]}])["'](?=\s*+(?:[,\]}]|\Z))"""
_INSIDE = re.compile(
    rf"""{_MARKS}
  | (?P<damaged_key>{_DAMAGED_KEY})
  | (?P<cut_key>{_CUT_KEY})
  | (?P<written>{NAMED_CORNERS}|{SET_OF_FOUR}|(?:{NUMBER_TOKEN}){{2,}}+)
  | (?P<blank>{_BLANK})
  | (?P<close_object>[}}｝])
  | (?P<close_list>[\])］】）])
  | (?P<comma>[,，])
  | (?P<semicolon>[;；])
  | (?P<ratio>[0-9]++:[0-9]++)
  | (?P<number>(?P<numeral>{NUMERAL}){AFTER_NUMERAL})
  | (?P<string>(?P<quote>\\?["'])
        (?P<body>(?:[^\\\r\n"',{{\[]++|(?!{_CLOSING}|{_NEXT_KEY})(?:["',{{\[]|\\[^\r\n]))*+)
        (?P<closed>(?P=quote)(?P<colon>\s*+[:：=])?)?)
  | (?P<word>\w[^\r\n,，:：{{}}\[\]()｛｝［］【】（）<`]*+(?P<word_colon>[:：])?)
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Outside brackets quotes are apostrophes and digits are prose.
_OUTSIDE = re.compile(
    rf"""{_MARKS}
  | (?P<written>{HTML_ATTRIBUTE}|{NAMED_CORNERS}|{SET_OF_FOUR}|{YAML_LIST}|{FOUR_TOKENS})
  | (?P<line>{LINE})
  | (?P<header>{HEADER})
  | (?P<row>{ROW})
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_JSON_START = re.compile(r"(?:```\w*+)?+\s*+(?:\[\s*+)?+\{\s*+[\"']\w")
_VALUE_GROUPS = {"number": "numeral", "written": "written", "ref": "name", "header": "header", "row": "row"}
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})++|\\(.)")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\", "/": "/"}


def next_token(text: str, position: int, inside: bool) -> Token | None:
    """Find the first token at or after a position.

    Args:
        text: any text.
        position: where to look from.
        inside: whether a bracket is open; quotes, numerals and words count only then.

    Returns:
        The token, or None if there is none before the end.

    Example:
        >>> next_token('so: {"label": "cat"}', 5, inside=True)
        Token(kind='key', start=5, end=13, value='label')
    """
    match = (_INSIDE if inside else _OUTSIDE).search(text, position)
    if match is None:
        return None
    kind = cast(str, match.lastgroup)
    start, end = match.span()
    if kind == "string":
        return _string_token(match, start, end)
    if kind == "word":
        return _word_token(match, start, end)
    if kind in ("damaged_key", "cut_key"):
        return Token("key", start, end, match["box_name"] or match["cut_name"])
    if kind == "line":
        return Token("line", start, end, match["four"] or match["fewer"])
    value_group = _VALUE_GROUPS.get(kind)
    return Token(cast(Kind, kind), start, end, match[value_group] if value_group else "")


def _word_token(match: re.Match[str], start: int, end: int) -> Token:
    value = match[0].rstrip(":： ").strip("\"'“”‘’")
    return Token("key" if match["word_colon"] else "word", start, end, value)


def _string_token(match: re.Match[str], start: int, end: int) -> Token:
    value = match["body"]
    for _ in match["quote"]:  # an escaped quote holds a text that is escaped twice
        value = _ESCAPE.sub(_unescape, value)
    if match["colon"]:
        return Token("key", start, end, value)
    if match["closed"]:
        return Token("string", start, end, value)
    if end == len(match.string):
        return Token("cut", start, end)
    return Token("string", start, end, value.rstrip(" \t,}]"))


def _unescape(match: re.Match[str]) -> str:
    if match[1] is None:  # a run at once, because two \u escapes may make one character
        return bytes.fromhex(match[0].replace("\\u", "")).decode("utf-16-be", "surrogatepass")
    return _ESCAPED.get(match[1], match[0])


def is_json(text: str) -> bool:
    r"""Whether a text begins like JSON objects, in a code fence or not.

    Example:
        >>> [is_json(text) for text in ('{"bbox_2d": [1', '```json\n[{"label"', "[a cat]")]
        [True, True, False]
    """
    return _JSON_START.match(text) is not None
