"""Fonts that have the characters of a text, among matplotlib's own and those of the system."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> tuple[Font, str]:
    """A font for a text, and the text as it can be drawn with it.

    Pillow's own font comes first, then one that has every character. Where there is none, the characters that
    cannot be drawn are written as escapes instead of empty boxes.

    Example:
        >>> font_for("red circle 0.87", 12)[1]
        'red circle 0.87'
    """
    own = ImageFont.load_default(size=size)
    if text.isascii():
        return own, text
    for entry in fonts_with(frozenset(text)):
        return ImageFont.truetype(entry.fname, size, index=entry.index), text
    return own, "".join(c if c.isascii() else _escaped(c) for c in text)


def families_for(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the fonts that have the characters of texts, and the texts as these can draw them.

    Characters that no font has are escaped. matplotlib takes each character from the first that has it.
    """
    texts = list(texts)
    found = {c: fonts_with(frozenset(c))[:1] for c in sorted({*"".join(texts)}) if not c.isspace()}
    families = [entry.name for entries in found.values() for entry in entries]
    drawn = ["".join(c if found.get(c, True) else _escaped(c) for c in text) for text in texts]
    return list(dict.fromkeys(["DejaVu Sans", *families])), drawn


@lru_cache(maxsize=4096)
def fonts_with(characters: frozenset[str]) -> tuple[FontEntry, ...]:
    """Upright fonts of regular weight that have all of some characters, matplotlib's default first."""
    from matplotlib.font_manager import fontManager  # lists the system's fonts when it is first imported

    wanted = {ord(character) for character in characters if not character.isspace()}
    regular = (entry for entry in fontManager.ttflist if (entry.style, entry.weight) == ("normal", 400))
    real = (entry for entry in regular if not entry.name.startswith("Last Resort"))  # draws signs for scripts
    ordered = sorted(real, key=lambda entry: (entry.name != "DejaVu Sans", entry.name))
    return tuple(entry for entry in ordered if wanted <= _characters(entry.fname, entry.index))


@lru_cache(maxsize=4096)
def _characters(file: str, index: int) -> frozenset[int]:
    from matplotlib.font_manager import FontPath, get_font

    return frozenset(get_font(FontPath(file, index)).get_charmap())


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
