"""Boxes, labels and scores drawn on images."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from qwendet.files import atomic_file
from qwendet.fonts import font_for

GOLDEN_RATIO = 0.618034
LEAST_SIDE = 448  # smaller images are enlarged, so that captions can be read


def colour_of(name: str) -> tuple[int, int, int]:
    """A bright colour that is always the same for a name."""
    hue = (zlib.crc32(name.encode("utf-8")) * GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], captions: Sequence[str]
) -> Image.Image:
    """Draw captioned boxes on a copy of an image.

    Args:
        image: RGB.
        boxes_xyxy: boxes in pixels of ``image``.
        captions: text of each box; its first words up to the score choose the colour.

    Returns:
        The picture; enlarged by a whole number if the image is small.
    """
    factor = max(1, -(-LEAST_SIDE // min(image.size)))
    picture = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    line = max(2, min(picture.size) // 250)
    size = max(12, min(picture.size) // 35)
    for box, caption in zip(boxes_xyxy, captions, strict=True):
        colour = colour_of(caption.rpartition(" ")[0] or caption)
        corners = [number * factor for number in box]
        draw.rectangle(corners, outline=colour, width=line)
        _draw_caption(draw, (corners[0], corners[1]), caption, colour, size)
    return picture


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    caption: str,
    colour: tuple[int, int, int],
    size: int,
) -> None:
    font, caption = font_for(caption, size)
    left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
    width, height = right - left + 4, bottom - top + 4
    x, y = corner[0], max(0.0, corner[1] - height)
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    draw.text((x + 2 - left, y + 2 - top), caption, fill="black", font=font)


def save_picture(
    image: Image.Image, boxes_xyxy: Sequence[Sequence[float]], captions: Sequence[str], target: Path
) -> None:
    """Draw and write a PNG; it appears whole or not at all."""
    with atomic_file(target) as path:
        draw_boxes(image, boxes_xyxy, captions).save(path, format="PNG")
