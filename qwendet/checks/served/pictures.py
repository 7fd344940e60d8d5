"""Pictures that show what a server does to images: turned, small, huge and very wide ones.

    stored 118 × 213 with EXIF orientation 6  ─►  displayed 213 × 118  ─►  shown to the model at another size

Nothing about them is symmetric: sides differ, colours differ.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base

from qwendet.data.samples import Sample, Turn
from qwendet.families.family import PixelLimits

TURNED = "turned.jpg"
WIDTH, HEIGHT = 213, 118
QUARTER_TURN = 6
MOST_PIXELS = 4_000_000
"""Of a drawn image; where the model takes more, none is drawn that it would shrink."""
SMALL_SHARE, HUGE_SHARE, WIDE_RATIO = 0.4, 1.8, 6


def calibration_samples(folder: Path, limits: PixelLimits) -> list[Sample]:
    """Questions about images that are turned, small, huge and very wide, written into a folder."""
    write_turned(folder)
    sizes = {"small.png": _sides(limits.min_pixels * SMALL_SHARE, 1.4)}
    if limits.max_pixels * HUGE_SHARE <= MOST_PIXELS:
        sizes["huge.png"] = _sides(limits.max_pixels * HUGE_SHARE, 1.3)
    sizes["wide.png"] = _sides(math.sqrt(limits.min_pixels * min(limits.max_pixels, MOST_PIXELS)), WIDE_RATIO)
    for name, size in sizes.items():
        Image.fromarray(_painted(*size)).save(folder / name)
    names = (TURNED, *sizes)
    return [Sample(Turn(name, (), root=folder), where=f"{name} (drawn for this check)") for name in names]


def write_turned(folder: Path) -> None:
    """Write a picture turned, with the orientation that turns it back."""
    stored = np.rot90(_painted(WIDTH, HEIGHT))  # orientation 6 turns it back, clockwise
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[Base.Orientation] = QUARTER_TURN
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / TURNED, quality=95, exif=exif)


def _painted(width: int, height: int) -> NDArray[np.uint8]:
    """Colours, edges and blocks that differ in every place and channel: ``(height, width, 3)``."""
    y, x = np.mgrid[:height, :width]
    channels = [x * 255 // width, 200 - y * 150 // height, (x // 16 + y // 12) % 2 * 120]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _sides(pixels: float, ratio: float) -> tuple[int, int]:
    """Width and height of about so many pixels; odd, so that each resize shows."""
    height = math.sqrt(pixels / ratio)
    return max(3, int(height * ratio)) | 1, max(3, int(height)) | 1
