"""A font that has the characters of a text, wherever one is installed."""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Where there is no fontconfig to be asked: macOS and Windows, Chinese, Japanese, Korean.
KNOWN_FONTS = (
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "/System/Library/Fonts/AppleSDGothicNeo.ttc",
    "C:/Windows/Fonts/msyh.ttc",
    "C:/Windows/Fonts/YuGothM.ttc",
    "C:/Windows/Fonts/malgun.ttf",
)
_NO_CHARACTER = "\uffff"  # what every font lacks


def font_for(text: str, size: int) -> tuple[Font, str]:
    """A font for a text, and the text as it can be drawn with it.

    Pillow's own font comes first, then an installed one that has every character. Where there is none, the
    characters that cannot be drawn are written as escapes instead of empty boxes.

    Args:
        text: any text.
        size: in pixels.

    Returns:
        The font and what to draw.

    Example:
        >>> font_for("red circle 0.87", 12)[1]
        'red circle 0.87'
    """
    own = ImageFont.load_default(size=size)
    missing = lacking(own, text)
    if not missing:
        return own, text
    for path in installed_fonts(missing):
        found = ImageFont.truetype(path, size)
        if not lacking(found, text):
            return found, text
    return own, "".join(_escape(character) if character in missing else character for character in text)


def lacking(font: Font, text: str) -> frozenset[str]:
    """The characters of a text that a font draws as it draws one that does not exist."""
    nothing = _drawn(font, _NO_CHARACTER)
    written = {character for character in text if not character.isspace()}
    return frozenset(character for character in written if _drawn(font, character) == nothing)


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@lru_cache(maxsize=256)
def installed_fonts(characters: frozenset[str]) -> tuple[str, ...]:
    """Files of fonts that have all of some characters, as far as the system can tell."""
    asked = shutil.which("fc-list")
    if asked is None:
        return tuple(path for path in KNOWN_FONTS if Path(path).is_file())
    pattern = ":charset=" + " ".join(f"{ord(character):x}" for character in sorted(characters))
    answer = subprocess.run(
        [asked, "--format=%{file}\n", pattern], capture_output=True, text=True, check=False
    )
    files = {line for line in answer.stdout.splitlines() if Path(line).suffix in (".ttf", ".ttc", ".otf")}
    return tuple(sorted(files, key=lambda file: (len(file), file)))  # Regular before Bold Oblique


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
