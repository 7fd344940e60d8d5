"""Boxes, labels and scores drawn on images, and detections drawn into a folder."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from qwendet.data.images import open_image
from qwendet.data.samples import Sample
from qwendet.files import atomic_file
from qwendet.inference.batches import Result, Skipped
from qwendet.inference.detections import Detection
from qwendet.visualization.fonts import font_for

GOLDEN_RATIO = 0.618034
LEAST_SIDE = 448  # smaller images are enlarged, so that captions can be read
TITLE_SIZE = 14


def colour_of(name: str) -> tuple[int, int, int]:
    """A bright colour that is always the same for a name."""
    hue = (zlib.crc32(name.encode("utf-8")) * GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    image: Image.Image,
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[str],
    scores: Sequence[float] | None = None,
) -> Image.Image:
    """Draw captioned boxes, in pixels of the RGB image, on a copy of it; a small image is enlarged.

    A box's label chooses its colour; scores stand in the captions, if there are any.
    """
    factor = max(1, -(-LEAST_SIDE // min(image.size)))
    picture = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    line = max(2, min(picture.size) // 250)
    size = max(12, min(picture.size) // 35)
    captions = labels if scores is None else [f"{a} {b:.2f}" for a, b in zip(labels, scores, strict=True)]
    for box, label, caption in zip(boxes_xyxy, labels, captions, strict=True):
        colour = colour_of(label)
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


def draw_detections(
    image: Image.Image, detections: Sequence[Detection], threshold: float, factor: float = 1.0
) -> Image.Image:
    """Draw detections from a score on, the best on top; ``image`` is ``factor`` times the displayed size."""
    found = [item for item in reversed(detections) if item.score >= threshold]
    boxes = [[number * factor for number in item.bbox_2d] for item in found]
    return draw_boxes(image, boxes, [item.desc for item in found], [item.score for item in found])


def save_pictures(
    samples: Sequence[Sample], results: Iterable[Result], folder: Path, threshold: float
) -> None:
    """Draw the detections of each image into ``folder``, one PNG an image."""
    for index, result in enumerate(results):
        if isinstance(result, Skipped):
            continue
        image = open_image(samples[index].student.image, samples[index].student.root, samples[index].where)
        with atomic_file(folder / f"{index:05d}_{Path(result.image).stem}.png") as path:
            draw_detections(image, result.detections, threshold).save(path, format="PNG")


def shrunk(image: Image.Image, most_side: int) -> tuple[Image.Image, float]:
    """An image whose longer side is at most so many pixels, and the factor it was shrunk by."""
    factor = min(1.0, most_side / max(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS), factor


def side_by_side(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one size next to each other, a title above each."""
    width, height = panels[0][1].size
    bar = TITLE_SIZE + 8
    canvas = Image.new("RGB", (width * len(panels), height + bar), "black")
    draw = ImageDraw.Draw(canvas)
    for index, (title, picture) in enumerate(panels):
        font, text = font_for(title, TITLE_SIZE)
        draw.text((index * width + 4, 2), text, fill="white", font=font)
        canvas.paste(picture, (index * width, bar))
    return canvas
