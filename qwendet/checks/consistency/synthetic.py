"""A picture that no mistake leaves as it is: sides differ, colours differ, and the file stores it turned.

    stored 118 × 213 with EXIF orientation 6  ─►  displayed 213 × 118  ─►  shown to the model at another size

Its boxes are laid out in the frame of answers, on whole units, so that writing them as text loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from qwendet.checks.reference import EXIF_ORIENTATION
from qwendet.data.samples import DetectedObject, Sample, Turn

NAME = "turned.jpg"
WIDTH, HEIGHT = 213, 118
QUARTER_TURN = 6
BOXES = ((0.05, 0.10, 0.50, 0.55), (0.30, 0.45, 0.95, 0.90), (0.60, 0.05, 0.90, 0.40))
"""In the unit square, sorted neither by top nor by left; no two edges alike."""


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
    """Draw colours that differ in every channel and place."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    red, green, blue = x * 255 // WIDTH, 200 - y * 150 // HEIGHT, (x // 16 + y // 12) % 2 * 120
    displayed = np.stack([red, green, blue], axis=-1)
    stored = np.rot90(displayed.clip(0, 255).astype(np.uint8))  # orientation 6 turns it back, clockwise
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = QUARTER_TURN
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, exif=exif)
