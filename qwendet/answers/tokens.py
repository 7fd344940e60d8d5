"""Tokens of text that is almost JSON.

Models use either quote, forget one, escape twice, put box tokens between brackets and stop in mid-word, so
a JSON reader would refuse most of what they write. Here nothing is refused: what is no token is skipped,
among it every bracket that no number follows. (json_repair loses repeated keys and all positions, takes a
number that was cut for a whole one, and needs quadratic time for ``["["["…`` and a deep stack for ``[[[…``.)

Repeats in the patterns are possessive or bounded, so that a text costs time linear in its length.
"""

from __future__ import annotations

import json
import re

from qwendet.answers.keys import BOX_NAME

ASCII = str.maketrans("（［【）］】｛｝，：；", "([[)]]{},:;")
"""Full-width marks, which the patterns do not know; places in the text stay."""

_OPEN, _CLOSE = r"[\[(]", r"[\])]"
_BETWEEN = r"(?:[\s,;\[\]()]|\\[nrt])"  # line breaks may be escaped twice
_PLAIN = r"(?:[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++))"
_DIGITS = rf"(?:{_PLAIN}(?:e[-+]?+[0-9]++)?+(?!\w|\.[0-9]))"
_NUMERAL = rf"(?:{_DIGITS}|[-+]?+(?:nan|inf(?:inity)?|null|none)(?!\w))"
_REST = rf"(?:{_BETWEEN}++{_NUMERAL})*+(?:[\s,]*+{_CLOSE})?+"
_NUMBERS = rf"{_OPEN}(?:\s|\\[nrt])*+{_NUMERAL}{_REST}"
# Box tokens of any release, Rex-Omni's numbers <1><2><3><4> in them, and HTML.
_BOX = rf"""
    (?:(?:<\|?\ ?b?box(?:_start)?\ ?\|?>\s*+)++|\bdata-bbox\s*+=\s*+["'])
    (?:[^\w<{{"'`]|<?{_NUMERAL}>?|(?:and|和|及)(?!\w))*+(?:<\|\ ?box_end\ ?\|>|</b?box>)?+
"""
# ``end`` is a mark that no object reaches over; ``open`` and ``close`` are braces; ``skip`` says nothing.
_MARKS = rf"""
    (?P<thought_end>[<◁\[]/(?:\w{{1,9}}:)?(?:think(?:ing)?|thought|reasoning|analysis)\b[>▷\]]?
        |<channel\|>|<\|channel\|>final<\|message\|>|<\|(?:end_of_thought|inner_suffix)\|>)
  | (?P<answer><answer>)
  | (?P<end>```|</answer>|<\|(?:im_start|im_end|endoftext)\|>)
  | (?P<ref><\|?\ ?(?:object_)?ref(?:_start)?\ ?\|?>(?P<name>[^<]*+))
  | (?P<box>{_BOX})
  | (?P<skip></ref>|<\|\ ?object_ref_end\ ?\|>|(?<![^\s,\[{{])//[^\r\n]*+|\b(?:null|none)\b)
  | (?P<open>{{(?!\s*+[0-9]))
"""
# A quote closes a string only before what may follow one, so that `24" monitor` and 'man's hat' stay
# whole. A string whose quote is missing ends with its line, or where the next key stands.
_CLOSING = r"""(?P=quote)(?=\s*+(?:[,:=;}\])]|\\[nrt]|\Z)|[ \t]*+[\r\n]|\s++\\?["'])"""
_NEXT_KEY = r"""(?:[,{\[]\s*+)?(?:"|(?P=quote))[\w\ ]{1,40}+\\?["']\s*+:"""
_VALUE = rf"""{_MARKS}
  | (?P<numbers>{_NUMBERS}|(?<![\w.]){_DIGITS}(?!\s*+:){_REST})
  | (?P<close>}})
  | (?P<string>(?P<quote>\\?["'])
        (?P<body>(?:[^\\\r\n"',{{\[]++|(?!{_CLOSING}|{_NEXT_KEY})(?:["',{{\[]|\\[^\r\n]))*+)
        (?P<closed>(?P=quote)(?P<colon>\s*+[:=])?+)?+)
  | (?P<word>\w[^\r\n,:{{}}\[\]()<`]*+(?P<word_colon>:)?+)
"""
# A key that lost a quote or its colon, or has a stray mark.
_DAMAGED_KEY = rf"""\\?["']?(?:
    {BOX_NAME}\W{{0,6}}?(?={_OPEN}\s*+[-+.0-9]|(?<=\}})[-+.0-9])
  | (?:label|name)["']{{0,2}}+[^\w{{,"']{{0,6}}+(?=\\?["'][^\s,:=)}}\]])
)"""
_FLAGS = re.VERBOSE | re.IGNORECASE | re.MULTILINE
PROSE = re.compile(rf"{_MARKS}|(?P<numbers>{_NUMBERS})|(?P<key>[\"'](?:{BOX_NAME}|label)[\"']\s*+:)", _FLAGS)
"""Tokens outside objects, where quotes, bare numerals and words are none."""
OBJECT = re.compile(rf"(?P<key>{_DAMAGED_KEY})|{_VALUE}", _FLAGS)
"""Tokens in an object; :data:`VALUE` is behind a key of it."""
VALUE = re.compile(_VALUE, _FLAGS)
NOTHING_MORE = re.compile(rf"{_BETWEEN}*+\Z")

RUN = re.compile(rf"{_OPEN}?(?:(?!{_OPEN}|{_CLOSE}|;|>[ ]?,[ ]?<).)++{_CLOSE}?", re.DOTALL)
"""What stands between two brackets."""
NUMBER = re.compile(rf"(?:(?<![\w.])|(?<=\\[nrt])){_NUMERAL}", re.IGNORECASE)
_ESCAPE = re.compile(r"""(?:\\u[0-9a-fA-F]{4})++|\\["'\\/bfnrt]""")


def text_of(token: re.Match[str], text: str) -> str | None:
    r"""A string or word as it stands in the text, without quotes and escapes; ``None`` if the end cuts it.

    Example:
        >>> text = r'"\u5706 \" \d"'
        >>> text_of(VALUE.match(text), text)
        '圆 " \\d'
    """
    if token.lastgroup == "word":
        return text[slice(*token.span())].rstrip(":： ").strip("\"'“”‘’")
    value = text[slice(*token.span("body"))]
    for _ in token["quote"]:  # an escaped quote holds a text that is escaped twice
        value = _ESCAPE.sub(lambda escape: "'" if escape[0] == r"\'" else json.loads(f'"{escape[0]}"'), value)
    if token["closed"]:
        return value
    return None if token.end() == len(text) else value.rstrip(" \t,}]")
