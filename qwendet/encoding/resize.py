"""Box frames: pixels of the displayed image, pixels of the model's image, the unit square.

The model's image is what the processor really made, so its size is read off ``image_grid_thw``
and never computed again from the limits. Both resizes of a box are then one division apart:

    displayed (W, H) --x/W, y/H--> unit square --x*w, y*h--> model's image (w, h) = grid * patch_size
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qwendet.data.samples import Turn
from qwendet.errors import DataError

FloatArray = npt.NDArray[np.float64]


def model_image_size(grid_thw: Sequence[int], patch_size: int) -> tuple[int, int]:
    """Width and height in pixels of the image as the model sees it, by a row of ``image_grid_thw``.

    Example:
        >>> model_image_size((1, 34, 46), 14)
        (644, 476)
    """
    _, rows, columns = (int(number) for number in grid_thw)
    return columns * patch_size, rows * patch_size


def rescale_xyxy(
    boxes_xyxy: Sequence[Sequence[float]] | FloatArray,
    source: tuple[float, float],
    target: tuple[float, float],
) -> FloatArray:
    """Move boxes ``(N, 4)`` from one size of the same image to another; not rounded.

    Sizes are width and height; ``(1, 1)`` is the unit square.

    Example:
        >>> rescale_xyxy([[320, 240, 640, 480]], (640, 480), (644, 476)).tolist()
        [[322.0, 238.0, 644.0, 476.0]]
    """
    boxes = np.reshape(boxes_xyxy, (-1, 4))
    scale = np.array([target[0] / source[0], target[1] / source[1]] * 2)
    rescaled: FloatArray = boxes * scale
    return rescaled


def require_inside(turn: Turn, size: tuple[int, int], where: str) -> None:
    """Refuse a box that leaves its image, both in pixels of the displayed image."""
    width, height = size
    for index, item in enumerate(turn.objects):
        x1, y1, x2, y2 = item.bbox_2d
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            raise DataError(
                f"objects[{index}].bbox_2d: {list(item.bbox_2d)} leaves {turn.image},"
                f" which is {width}x{height}",
                where,
                "give xyxy pixels of the image as displayed, or clip the box",
            )
