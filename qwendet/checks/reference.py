"""What the model must be shown, computed a second time with numpy and Pillow alone.

Nothing here calls the encoder, the collator, the image processor or the model: a mistake in one of them
cannot be in here as well. Formulas are those that the families' processors publish.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from qwendet.families.family import AnswerForm

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
        min_pixels: least pixels of the model's image.
        max_pixels: most pixels of the model's image.
        patch_size: side of a patch, pixels.
        temporal_patch_size: frames of a patch; a still image is repeated.
        merge_size: side of the block of patches that becomes one token.
        mean: of red, green and blue, in the unit interval.
        std: likewise.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


def displayed_pixels(path: Path) -> ByteArray | None:
    """Pixels as a viewer shows them: ``(height, width, 3)``, red first; None for modes with a choice."""
    with Image.open(path) as stored:
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
    """Patches of a displayed image as the model must get them.

    Args:
        pixels: ``(height, width, 3)``, red first.
        facts: how they are made.

    Returns:
        ``(patches, 3 * frames * side * side)`` float64, and rows and columns of patches.
    """
    height, width = pixels.shape[:2]
    wide, high = model_size(width, height, facts)
    resized = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BICUBIC))
    normal = (resized / 255 - np.array(facts.mean)) / np.array(facts.std)
    side = facts.patch_size
    rows, columns = high // side, wide // side
    flat = []
    for row, column in patch_places(rows, columns, facts.merge_size):
        patch = normal[row * side : (row + 1) * side, column * side : (column + 1) * side]
        channels_first = patch.transpose(2, 0, 1)[:, None]
        flat.append(channels_first.repeat(facts.temporal_patch_size, axis=1).ravel())
    return np.stack(flat), (rows, columns)


def answer_text(
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[str],
    displayed: tuple[int, int],
    shown: tuple[int, int],
    form: AnswerForm = "json",
) -> str:
    """The answer that the model must learn, by the letter of the published grounding format.

    Args:
        boxes_xyxy: ``(N, 4)`` in pixels of the displayed image.
        labels: N label texts.
        displayed: width and height of the displayed image.
        shown: width and height of the frame of answers.
        form: how answers are written.
    """
    (scale_x, scale_y), (wide, high) = (shown[0] / displayed[0], shown[1] / displayed[1]), shown
    rows = []
    for (x1, y1, x2, y2), label in zip(boxes_xyxy, labels, strict=True):
        left, top = round(min(x1 * scale_x, wide - 1)), round(min(y1 * scale_y, high - 1))
        right, bottom = max(round(x2 * scale_x), left + 1), max(round(y2 * scale_y), top + 1)
        rows.append((top, left, right, bottom, label))
    rows.sort(key=lambda row: row[:2])
    if form == "box_tokens" and rows:
        return "".join(
            f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>({left},{top}),({right},{bottom})<|box_end|>"
            for top, left, right, bottom, label in rows
        )
    return json.dumps(
        [{"bbox_2d": [left, top, right, bottom], "label": label} for top, left, right, bottom, label in rows],
        ensure_ascii=False,
    )


def rope_positions(
    input_ids: Sequence[int], image_token_id: int, grids: Sequence[Sequence[int]], merge_size: int
) -> IntArray:
    """Time, row and column of each token (M-RoPE, Wang et al. 2024, §2.1): ``(3, tokens)``.

    Text counts on in all three. The tokens of an image share the time at which it starts and count rows and
    columns from it; the text behind goes on after the larger of the two.

    Args:
        input_ids: one sequence without padding.
        image_token_id: token that stands for a block of patches.
        grids: frames, rows and columns of patches of each image in order.
        merge_size: side of that block.

    Example:
        >>> rope_positions([5, 9, 9, 6], 9, [(1, 2, 4)], 2).tolist()
        [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    """
    positions: list[tuple[int, int, int]] = []
    now, at, images = 0, 0, iter(grids)
    while at < len(input_ids):
        if input_ids[at] != image_token_id:
            positions.append((now, now, now))
            now, at = now + 1, at + 1
            continue
        frames, rows, columns = next(images)
        rows, columns = rows // merge_size, columns // merge_size
        positions += [
            (now + frame, now + row, now + column)
            for frame in range(frames)
            for row in range(rows)
            for column in range(columns)
        ]
        now, at = now + max(rows, columns), at + frames * rows * columns
    return np.array(positions, dtype=np.int64).T


def rotary_angles(
    place: Sequence[int], sections: Sequence[int], base: float, *, interleaved: bool
) -> FloatArray:
    """Angles by which the pairs of a head turn at a place: ``(pairs,)``, the fastest first.

    Time, row and column have a block of pairs each, or take turns until row and column have all of theirs.

    Args:
        place: time, row and column.
        sections: pairs of each.
        base: ``rope_theta``.
        interleaved: they take turns.

    Example:
        >>> [rotary_angles((1, 2, 3), (3, 1, 1), 1, interleaved=turns).tolist() for turns in (False, True)]
        [[1.0, 1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 1.0, 1.0]]
    """
    pairs = np.arange(sum(sections))
    axes = np.repeat([0, 1, 2], sections)
    if interleaved:
        axes = np.where(pairs < 3 * np.array(sections)[pairs % 3], pairs % 3, 0)
    angles: FloatArray = np.array(place)[axes] * float(base) ** -(pairs / len(pairs))
    return angles
