"""Are objects large enough, as the model sees them, for one image token to be theirs?"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwendet.checks.config.dataset import Check, Dataset
from qwendet.checks.config.frames import Floats, box_table, sides_px
from qwendet.checks.config.samples import Split
from qwendet.checks.config.stats import SplitStats
from qwendet.checks.runner import NotApplicableError
from qwendet.config.schema import InferConfig
from qwendet.data.windows import windows_by
from qwendet.encoding.image_tokens import image_limits
from qwendet.errors import Problem
from qwendet.families.family import PixelLimits

SMALL_OBJECTS = "config.images.small_objects"
STEP = 1.05
"""Factor between two pixel limits that are tried."""
NEARLY = 0.9
"""Of the side of windows with which objects are just large enough: some are cut, and smaller then."""
WITHOUT_LIMIT = 2**62
WHOLE = InferConfig()


class _Boxes(NamedTuple):
    """Boxes of a split: ``sides`` ``(N,)`` are square roots of areas in pixels of the displayed image.

    ``image`` ``(N,)`` is the index of each box's image into ``sizes``.
    """

    sides: Floats
    sizes: list[tuple[int, int]]
    image: NDArray[np.integer[Any]]

    def median(self, limits: PixelLimits, tiles: InferConfig = WHOLE) -> float:
        """Median side as the model sees it, in the view that shows an image largest."""
        scales = np.array([_scale(size, limits, tiles) for size in self.sizes])
        return float(np.median(self.sides * scales[self.image]))


def _scale(size: tuple[int, int], limits: PixelLimits, tiles: InferConfig) -> float:
    left, top, right, bottom = windows_by(tiles, size, limits)[0]
    views = (size, (right - left, bottom - top))
    return max(math.sqrt(math.prod(limits.resized(view)) / math.prod(view)) for view in views)


def objects_cover_a_token(dataset: Dataset) -> Iterable[Problem]:
    """The median box, as the model sees it, is as large as what one image token covers."""
    config, limits = dataset.config, image_limits(dataset.config)
    if limits is None:
        raise NotApplicableError("only a download of the model would tell how it resizes images")
    if not any(_boxes(stats) for stats in dataset.splits.values()):
        raise NotApplicableError("there is no box in an image of known size")
    return small_objects(dataset.splits, limits, config.infer)


def small_objects(
    splits: Mapping[Split, SplitStats], limits: PixelLimits, infer: InferConfig = WHOLE
) -> Iterator[Problem]:
    """Splits whose median box is smaller than what one image token covers.

    Validation images are looked at as inference does it, training images as they are.
    """
    views: Mapping[Split, InferConfig] = {"train": WHOLE, "val": infer}
    for split, stats in ((split, splits[split]) for split in views if split in splits):
        boxes = _boxes(stats)
        if boxes is not None and (median := boxes.median(limits, views[split])) < limits.unit:
            seen = f"{median:.3g} pixels as the model sees it, where one image token covers {limits.unit}"
            what = f"the median box of {stats.name} has a side of {seen}"
            yield Problem(what, f"data.{split}", _fix(boxes, limits, stats))


def _boxes(stats: SplitStats) -> _Boxes | None:
    """Those in images of known size, if there are any; what has no pixel is no box in pixels."""
    table = box_table(stats)
    sides = sides_px(table)
    known = (table[:, 4:6] > 0).all(axis=1) & (sides >= 1)
    if not known.any():
        return None
    sizes, image = np.unique(table[known, 4:6].astype(int), axis=0, return_inverse=True)
    return _Boxes(sides[known], [(int(width), int(height)) for width, height in sizes], image.reshape(-1))


def _fix(boxes: _Boxes, limits: PixelLimits, stats: SplitStats) -> str:
    """The pixel limit, and the windows, with which the median box is large enough."""
    unit = limits.unit
    is_small_in_files = boxes.median(replace(limits, max_pixels=WITHOUT_LIMIT)) < unit
    larger = limits
    while boxes.median(larger) < unit:
        least = larger.min_pixels if is_small_in_files else larger.max_pixels
        pixels = math.ceil(STEP * least / unit**2) * unit**2
        low = pixels if is_small_in_files else limits.min_pixels
        larger = replace(limits, min_pixels=low, max_pixels=max(pixels, limits.max_pixels))
    changed = [key for key in ("max_pixels", "min_pixels") if getattr(larger, key) != getattr(limits, key)]
    fix = "enlarge the images: " + " ".join(f"--set data.{key}={getattr(larger, key)}" for key in changed)
    displayed = float(np.median(boxes.sides))
    side = int(NEARLY * math.sqrt(limits.max_pixels) * displayed / unit)
    in_windows = replace(limits, min_pixels=limits.max_pixels) if is_small_in_files else limits
    while displayed * _scale((side, side), in_windows, WHOLE) < unit:  # the model's size is in steps
        side -= 1
    if side >= max(map(max, boxes.sizes)):
        return fix
    enlarged = f" and data.min_pixels={limits.max_pixels}" if is_small_in_files else ""
    tile = f"qwendet data tile {shlex.quote(str(stats.path.parent))} DST --tiles {side}"
    return f"{fix}; or take windows: {tile}, with infer.tiles={side}{enlarged}"


CHECKS: Mapping[str, Check] = {
    SMALL_OBJECTS: Check(
        objects_cover_a_token, "objects are large enough for the model to see", is_of_data=False
    ),
}
