"""The pixels that the model must be shown, computed a second time with numpy and Pillow alone.

Formulas are those that the families' processors publish; nothing here calls the encoder or the processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from qwendet.data.archives import file_at

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]

EXIF_ORIENTATION = 274
PLAIN_MODES = ("RGB", "L")
"""Pillow modes whose conversion to RGB leaves no choice."""


@dataclass(frozen=True)
class ImageFacts:
    """How an image becomes patches.

    Attributes:
        patch_size: side of a patch, pixels.
        temporal_patch_size: frames of a patch; a still image is repeated.
        merge_size: side of the block of patches that becomes one token.
        image_mean: of red, green and blue, in the unit interval.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)


def displayed_pixels(path: Path) -> ByteArray | None:
    """Pixels as a viewer shows them: ``(height, width, 3)``, red first; None for modes with a choice."""
    file = file_at(path)
    assert file is not None
    with file.open("rb") as opened, Image.open(opened) as stored:
        if stored.mode not in PLAIN_MODES:
            return None
        orientation = stored.getexif().get(EXIF_ORIENTATION, 1)
        pixels = np.asarray(stored.convert("RGB"))
    return turned(pixels, orientation)


def turned(pixels: ByteArray, orientation: int) -> ByteArray:
    """Apply an EXIF orientation (TIFF 6.0, tag 274) to ``(height, width, channels)``."""
    if orientation >= 5:  # rows are columns
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def model_size(width: int, height: int, facts: ImageFacts) -> tuple[int, int]:
    """Width and height of the model's image, for a displayed image.

    Example:
        >>> model_size(640, 480, ImageFacts(3136, 12845056))
        (644, 476)
    """
    side = facts.patch_size * facts.merge_size
    wide, high = round(width / side) * side, round(height / side) * side
    if wide * high > facts.max_pixels:
        shrink = math.sqrt(width * height / facts.max_pixels)
        wide, high = (max(side, math.floor(number / shrink / side) * side) for number in (width, height))
    elif wide * high < facts.min_pixels:
        grow = math.sqrt(facts.min_pixels / (width * height))
        wide, high = (math.ceil(number * grow / side) * side for number in (width, height))
    return wide, high


def patch_places(rows: int, columns: int, merge_size: int) -> IntArray:
    """Row and column of each patch in the order of the model's input: ``(rows * columns, 2)``.

    Block by block, so that the patches of one token are neighbours.

    Example:
        >>> patch_places(2, 4, 2).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    """
    places = [
        (top + row, left + column)
        for top in range(0, rows, merge_size)
        for left in range(0, columns, merge_size)
        for row in range(merge_size)
        for column in range(merge_size)
    ]
    return np.array(places, dtype=np.int64)


def patch_values(pixels: ByteArray, facts: ImageFacts) -> tuple[FloatArray, tuple[int, int]]:
    """Patches of a displayed image as the model must get them, and rows and columns of patches.

    They are ``(patches, 3 * frames * side * side)`` float64.
    """
    height, width = pixels.shape[:2]
    wide, high = model_size(width, height, facts)
    resized = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BICUBIC))
    normal = (resized / 255 - np.array(facts.image_mean)) / np.array(facts.image_std)
    side = facts.patch_size
    rows, columns = high // side, wide // side
    flat = []
    for row, column in patch_places(rows, columns, facts.merge_size):
        patch = normal[row * side : (row + 1) * side, column * side : (column + 1) * side]
        channels_first = patch.transpose(2, 0, 1)[:, None]
        flat.append(channels_first.repeat(facts.temporal_patch_size, axis=1).ravel())
    return np.stack(flat), (rows, columns)
