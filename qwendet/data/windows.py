"""Windows of a large image: all of one size, from edge to edge, evenly spread, overlapping.

``data tile`` cuts training images so, and ``infer.tiles`` those that a model is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from qwendet.config.schema import InferConfig
from qwendet.errors import ConfigError
from qwendet.families.family import PixelLimits

NEARLY_WHOLE = 0.8
"""Share of an image's pixels with which ``auto`` leaves it whole: the model hardly shrinks it."""
Window = tuple[int, int, int, int]
"""xyxy, whole pixels of the displayed image."""


def windows_of(size: tuple[int, int], tiles: int | str, overlap: float) -> list[Window]:
    """Cut an image, ``size`` pixels, row by row; one that is no larger than a window is a single one.

    ``tiles`` is the side of a window in pixels, or columns x rows; ``overlap`` the least share of a window's
    side that its neighbour shows as well, from 0 to below 1.

    Example:
        >>> windows_of((100, 40), 60, 0.2)
        [(0, 0, 60, 40), (40, 0, 100, 40)]
        >>> windows_of((100, 40), "1x2", 0.5)
        [(0, 0, 100, 27), (0, 13, 100, 40)]
    """
    counts = tiles.split("x") if isinstance(tiles, str) else (0, 0)
    axes = zip(size, window_size(size, tiles, overlap), map(int, counts), strict=True)
    columns, rows = (_spans(*axis, overlap) for axis in axes)
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def windows_by(settings: InferConfig, size: tuple[int, int], limits: PixelLimits) -> list[Window]:
    """The windows that ``infer.tiles`` cuts an image of a size into; the whole where it cuts none.

    Example:
        >>> windows_by(InferConfig(tiles="auto"), (300, 200), PixelLimits(3136, 50176, 28))
        [(0, 0, 224, 200), (76, 0, 300, 200)]
    """
    tiles = settings.tiles
    if tiles == "off" or (
        tiles == "auto" and math.prod(limits.resized(size)) >= NEARLY_WHOLE * math.prod(size)
    ):
        return [(0, 0, *size)]
    if tiles == "auto":
        tiles = math.isqrt(limits.max_pixels) // limits.unit * limits.unit
    return windows_of(size, tiles, settings.overlap)


def window_size(size: tuple[int, int], tiles: int | str, overlap: float) -> tuple[int, int]:
    """Width and height of the windows of an image; arguments as for :func:`windows_of`."""
    width, height = size
    if isinstance(tiles, int):
        return min(width, tiles), min(height, tiles)
    columns, rows = (int(count) - (int(count) - 1) * overlap for count in tiles.split("x"))
    return min(width, math.ceil(width / columns)), min(height, math.ceil(height / rows))


def _spans(length: int, side: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Start and end of the windows along an axis; a ``count`` of 0 takes as many as are needed."""
    step = max(1, math.floor(side * (1 - overlap)))
    count = count or 1 + math.ceil((length - side) / step)
    starts = (round(at * (length - side) / max(1, count - 1)) for at in range(count))
    return [(start, start + side) for start in dict.fromkeys(starts)]


def require_windows(
    sizes: Collection[tuple[int, int]], tiles: int | str, overlap: float, least: int, where: str
) -> None:
    """Refuse windows that cut no image, or whose side is below ``least`` pixels."""
    windows = {size: window_size(size, tiles, overlap) for size in sizes}
    if windows and all(window == size for size, window in windows.items()):
        largest = "{}x{}".format(*max(sizes, key=max))
        what = f"tiles of {tiles} would cut no image: the largest has {largest} pixels"
        raise ConfigError(what, where, "take smaller windows, or none")
    for size, window in windows.items():
        if any(side < min(least, whole) for side, whole in zip(window, size, strict=True)):
            what = "an image of {}x{} pixels would have windows of {}x{}".format(*size, *window)
            raise ConfigError(what, where, f"take larger ones: at least {least}x{least} pixels")
