"""Images that no mistake of a server leaves as they are: turned, small, huge and very wide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from qwendet.checks.consistency.synthetic import synthetic_sample
from qwendet.data.samples import Sample, Turn
from qwendet.families.family import THOUSANDTHS, PixelLimits

MOST_PIXELS = 4_000_000
"""Of a drawn image; where the model takes more, none is drawn that it would shrink."""
SMALL_SHARE, HUGE_SHARE, WIDE_RATIO = 0.4, 1.8, 6


def calibration_samples(folder: Path, labels: Sequence[str], limits: PixelLimits) -> list[Sample]:
    """Draw the images, and return them as questions."""
    turned = synthetic_sample(folder, labels, (THOUSANDTHS, THOUSANDTHS))
    sizes = {"small.png": _sides(limits.min_pixels * SMALL_SHARE, 1.4)}
    if limits.max_pixels * HUGE_SHARE <= MOST_PIXELS:
        sizes["huge.png"] = _sides(limits.max_pixels * HUGE_SHARE, 1.3)
    sizes["wide.png"] = _sides(math.sqrt(limits.min_pixels * min(limits.max_pixels, MOST_PIXELS)), WIDE_RATIO)
    return [turned, *(_drawn(folder / name, size) for name, size in sizes.items())]


def _sides(pixels: float, ratio: float) -> tuple[int, int]:
    """Width and height of about so many pixels; odd, so that each resize shows."""
    height = math.sqrt(pixels / ratio)
    return max(3, int(height * ratio)) | 1, max(3, int(height)) | 1


def _drawn(path: Path, size: tuple[int, int]) -> Sample:
    """Colours, edges and blocks that differ in every place and channel."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    blocks = (x * 7 // width + y * 5 // height) % 2 * 90
    channels = [x * 255 // width, 200 - y * 150 // height, blocks + 40]
    Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)).save(path)
    return Sample(Turn(path.name, (), root=path.parent), where=f"{path.name} (drawn for this check)")
