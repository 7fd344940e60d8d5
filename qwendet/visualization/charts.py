"""Bar charts and heat maps as PNG, drawn by Pillow: a look at a data set needs no plotting library.

Texts are drawn with a font of the system that has their characters; those that no font has are shown as
escapes, never as boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from qwendet.files import atomic_file

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# By name, which Pillow looks for in the system's folders; the first that has the characters is taken.
FONT_NAMES = (
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
)
FONT_PX = 15
MARGIN = 16
CHART_WIDTH, CHART_HEIGHT = 720, 420
INK, BAR, FAINT = (32, 32, 36), (64, 110, 190), (216, 218, 224)
MOST_TICKS = 8
UNASSIGNED = "\U000e0fff"
RIGHT_TO_LEFT = ("\u0590", "\u08ff")


def save_histogram(
    target: Path, title: str, counts: Sequence[int], names: Sequence[str], note: str = ""
) -> None:
    """Draw upright bars.

    Args:
        target: PNG to write; it appears whole or not at all.
        title: one line above.
        counts: height of each bar.
        names: what stands below each bar; where there is no room, only some are shown.
        note: one line below.
    """
    picture = Image.new("RGB", (CHART_WIDTH, CHART_HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 80, 52, CHART_WIDTH - MARGIN, CHART_HEIGHT - 64
    _write(draw, (MARGIN, MARGIN), title)
    highest = max([*counts, 1])
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        draw.line([left, y, right, y], fill=FAINT)
        _write(draw, (left - 8, y), f"{share * highest:,.0f}", anchor="rm")
    width = (right - left) / max(1, len(counts))
    step = -(-len(names) // MOST_TICKS)
    for index, (count, name) in enumerate(zip(counts, names, strict=True)):
        x = left + index * width
        if count:
            height = max(1.0, count / highest * (bottom - top))
            draw.rectangle([x + 1, bottom - height, x + max(1.0, width - 2), bottom], fill=BAR)
        if index % step == 0:
            _write(draw, (x + width / 2, bottom + 8), name, anchor="ma")
    _write(draw, (MARGIN, CHART_HEIGHT - 28), note)
    _save(picture, target)


def save_bars(target: Path, title: str, names: Sequence[str], counts: Sequence[int]) -> None:
    """Draw lying bars, one below the other, each with its name and count.

    Args:
        target: PNG to write; it appears whole or not at all.
        title: one line above.
        names: any text, in any script.
        counts: length of each bar.
    """
    row = FONT_PX + 9
    texts = [legible(name) for name in names]
    widest = max((font.getlength(text) for text, font in texts), default=0.0)
    left = int(min(widest, CHART_WIDTH / 2)) + 2 * MARGIN
    picture = Image.new("RGB", (CHART_WIDTH, 60 + row * len(names)), "white")
    draw = ImageDraw.Draw(picture)
    _write(draw, (MARGIN, MARGIN), title)
    highest = max([*counts, 1])
    for index, (name, count) in enumerate(zip(names, counts, strict=True)):
        y = 48 + index * row
        length = count / highest * (CHART_WIDTH - left - 100)
        _write(draw, (left - 8, y + row / 2), name, anchor="rm")
        draw.rectangle([left, y + 3, left + length, y + row - 3], fill=BAR)
        _write(draw, (left + length + 6, y + row / 2), f"{count:,}", anchor="lm")
    _save(picture, target)


def save_heat_map(target: Path, title: str, counts: NDArray[np.int64], note: str = "") -> None:
    """Draw a grid, darker where there is more.

    Args:
        target: PNG to write; it appears whole or not at all.
        title: one line above.
        counts: ``(rows, columns)``.
        note: one line below.
    """
    side = CHART_HEIGHT
    share = counts / max(1, counts.max())
    white, full = np.array((255, 255, 255)), np.array(BAR)
    colours = (white + share[..., None] * (full - white)).round().astype(np.uint8)
    picture = Image.new("RGB", (side + 2 * MARGIN, side + 90), "white")
    picture.paste(Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST), (MARGIN, 48))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([MARGIN, 48, MARGIN + side, 48 + side], outline=FAINT)
    _write(draw, (MARGIN, MARGIN), title)
    _write(draw, (MARGIN, side + 56), note)
    _save(picture, target)


def legible(text: str) -> tuple[str, Font]:
    """A text as it can be drawn, and the font for it.

    Returns:
        The text itself with a font that has all of its characters; if there is none, the text with the
        missing characters as Python's escapes.
    """
    default = fonts()[0]
    is_turned = any(RIGHT_TO_LEFT[0] <= character <= RIGHT_TO_LEFT[1] for character in text)
    if is_turned and not features.check("raqm"):  # without it, letters would stand unjoined and reversed
        return text.encode("unicode_escape").decode("ascii"), default
    for font in fonts():
        if all(_has(font, character) for character in text):
            return text, font
    shown = (
        character if _has(default, character) else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
    return "".join(shown), default


@lru_cache(maxsize=1)
def fonts() -> tuple[Font, ...]:
    """The fonts that are here; at least Pillow's own."""
    found: list[Font] = []
    for name in FONT_NAMES:
        try:
            found.append(ImageFont.truetype(name, FONT_PX))
        except OSError:  # not on this machine
            continue
    return (*found, ImageFont.load_default(size=FONT_PX))


@lru_cache(maxsize=4096)
def _has(font: Font, character: str) -> bool:
    """Whether a font draws a character as itself, not as the sign for what it lacks."""
    if character.isspace():
        return True
    return bytes(font.getmask(character)) != bytes(font.getmask(UNASSIGNED))


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str = "la") -> None:
    shown, font = legible(text)
    draw.text(at, shown, fill=INK, font=font, anchor=anchor)


def _save(picture: Image.Image, target: Path) -> None:
    with atomic_file(target) as path:
        picture.save(path, format="PNG")
