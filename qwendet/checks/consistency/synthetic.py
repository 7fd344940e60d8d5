"""Pictures that no mistake leaves as they are: sides differ, colours differ, one file stores it turned.

    stored 118 × 213 with EXIF orientation 6  ─►  displayed 213 × 118  ─►  shown to the model at another size

Its boxes are laid out in the frame of answers, on whole units, so that writing them as text loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwendet.checks.reference import EXIF_ORIENTATION
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.families.family import THOUSANDTHS, PixelLimits

NAME = "turned.jpg"
WIDTH, HEIGHT = 213, 118
QUARTER_TURN = 6
BOXES = ((0.05, 0.10, 0.50, 0.55), (0.30, 0.45, 0.95, 0.90), (0.60, 0.05, 0.90, 0.40))
"""In the unit square, sorted neither by top nor by left; no two edges alike."""
MOST_PIXELS = 4_000_000
"""Of a drawn image; where the model takes more, none is drawn that it would shrink."""
SMALL_SHARE, HUGE_SHARE, WIDE_RATIO = 0.4, 1.8, 6


def synthetic_sample(folder: Path, labels: Sequence[str], frame: tuple[int, int]) -> Sample:
    """Write the picture and return it as a sample."""
    _write_picture(folder / NAME)
    objects = tuple(
        DetectedObject(_whole_units(box, frame), labels[0 if index % 2 else -1])
        for index, box in enumerate(BOXES)
    )
    crowd = DetectedObject((1.0, 1.0, WIDTH / 2, HEIGHT / 2), labels[0], crowd=True)  # nobody's target
    turn = Turn(NAME, (*objects, crowd), labels=tuple(labels), root=folder)
    return Sample(turn, where=f"{NAME} (drawn for this check)")


def _whole_units(box: Sequence[float], frame: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box in pixels of the displayed image, its edges whole units of the frame."""
    wide, high = frame
    x1, x2 = (round(number * wide) * WIDTH / wide for number in box[0::2])
    y1, y2 = (round(number * high) * HEIGHT / high for number in box[1::2])
    return x1, y1, x2, y2


def _write_picture(path: Path) -> None:
    """Write it turned, with the orientation that turns it back."""
    stored = np.rot90(_painted(WIDTH, HEIGHT))  # orientation 6 turns it back, clockwise
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = QUARTER_TURN
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, exif=exif)


def _painted(width: int, height: int) -> NDArray[np.uint8]:
    """Colours, edges and blocks that differ in every place and channel: ``(height, width, 3)``."""
    y, x = np.mgrid[:height, :width]
    channels = [x * 255 // width, 200 - y * 150 // height, (x // 16 + y // 12) % 2 * 120]
    return np.stack(channels, axis=-1).astype(np.uint8)


# For servers


def calibration_samples(folder: Path, labels: Sequence[str], limits: PixelLimits) -> list[Sample]:
    """Questions about images that are turned, small, huge and very wide, written into a folder."""
    turned = synthetic_sample(folder, labels, (THOUSANDTHS, THOUSANDTHS))
    sizes = {"small.png": _sides(limits.min_pixels * SMALL_SHARE, 1.4)}
    if limits.max_pixels * HUGE_SHARE <= MOST_PIXELS:
        sizes["huge.png"] = _sides(limits.max_pixels * HUGE_SHARE, 1.3)
    sizes["wide.png"] = _sides(math.sqrt(limits.min_pixels * min(limits.max_pixels, MOST_PIXELS)), WIDE_RATIO)
    for name, size in sizes.items():
        Image.fromarray(_painted(*size)).save(folder / name)
    where = "{} (drawn for this check)"
    return [turned, *(Sample(Turn(name, (), root=folder), where=where.format(name)) for name in sizes)]


def _sides(pixels: float, ratio: float) -> tuple[int, int]:
    """Width and height of about so many pixels; odd, so that each resize shows."""
    height = math.sqrt(pixels / ratio)
    return max(3, int(height * ratio)) | 1, max(3, int(height)) | 1
