"""Characters of labels and of file names: what nobody sees is refused, what is only rare is not."""

from __future__ import annotations

import re
import unicodedata

JOINERS = "\u200c\u200d"
"""Between letters of Persian and Indic scripts, and in emoji: unseen by themselves, yet part of words."""
WITHOUT_JOINERS = str.maketrans("", "", JOINERS)
FLAGS = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")
"""Emoji of England, Scotland and Wales: a black flag and letters that nobody sees."""
SPACES = str.maketrans(
    dict.fromkeys("\xa0\u1680\u202f\u205f\u3000", " ") | dict.fromkeys(map(chr, range(0x2000, 0x200B)), " ")
)
"""Blanks of other widths and those that no line breaks at, as web pages and spreadsheets have them."""
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
ESCAPED_BYTES = re.compile("[\udc80-\udcff]")
"""Bytes of a file name that is not UTF-8, as Python keeps them (PEP 383)."""


def unseen_character(text: str) -> str | None:
    r"""The first character that controls and is not seen, in words.

    Example:
        >>> unseen_character("caf\xe9\u202fPM \U0001f529"), unseen_character("a\u200bb")
        (None, 'U+200B ZERO WIDTH SPACE')
    """
    for character in FLAGS.sub("", text).translate(WITHOUT_JOINERS):
        if unicodedata.category(character) in UNSEEN:
            return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()
    return None


def as_unicode(name: str) -> str:
    r"""A file name that is not UTF-8 with its bytes as in a URL.

    Example:
        >>> as_unicode("\udcd6.jpg")
        '%D6.jpg'
    """
    return ESCAPED_BYTES.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)
