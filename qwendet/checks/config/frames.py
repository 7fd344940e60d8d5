"""In which way the boxes of a data set are written: as pixels, or as something else.

A single box seldom tells [x1, y1, x2, y2] pixels from another way of writing it. All of them do: as what
they are not, many are impossible; as what they are, none is. And where none is impossible, boxes of many
images that all stay within 1000 (or 100) of images far larger are too unlikely to be pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwendet.checks.config.dataset import Check, Dataset
from qwendet.checks.config.stats import BOX_COLUMNS, SplitStats
from qwendet.data.formats.records import Format
from qwendet.errors import Problem

Floats = NDArray[np.floating[Any]]
Matrix = tuple[tuple[float, ...], ...]

LEAST_IMPOSSIBLE = 3  # boxes, below which each is reported by itself alone
LEAST_SHARE = 0.1  # of impossible boxes, for the way of writing to be in doubt
MOST_LEFT = 0.02  # share of boxes that the other way may leave unexplained
LEAST_IMAGES = 5  # larger than the scale in question
UNLIKELY_LOG = math.log(1e-4)  # probability of pixels staying within a scale by chance
VERY_UNLIKELY_LOG = math.log(1e-6)  # … within a part of the images that no known scale explains
LARGEST_PART = 0.6
NEAR_ORIGIN = 0.05
SCALES = {1000.0: "0-1000 coordinates", 100.0: "percentages"}
FAR = 1e9  # pixels
ROUNDING = 0.01  # share of the frame by which rounding may leave it
WRITE_PIXELS = "write boxes in pixels of the images as they are; if they are, accept this"


class Way(NamedTuple):
    """A way of writing boxes.

    Attributes:
        to_xyxy: matrix that makes corners of the four numbers as written.
        frame: width and height that x and y then range over; None is the image's own.
    """

    name: str
    to_xyxy: Matrix
    frame: float | None = None


_AS_IS: Matrix = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
_FROM_YXYX: Matrix = ((0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0))
_FROM_XYWH: Matrix = ((1, 0, 0, 0), (0, 1, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1))
_FROM_CXCYWH: Matrix = ((1, 0, -0.5, 0), (0, 1, 0, -0.5), (1, 0, 0.5, 0), (0, 1, 0, 0.5))
PIXELS = Way("[x1, y1, x2, y2] pixels", _AS_IS)
WAYS = (  # the more usual first: of two that explain the boxes equally well it is named
    Way("[x, y, width, height] pixels", _FROM_XYWH),
    Way("[y1, x1, y2, x2] pixels", _FROM_YXYX),
    Way("[x1, y1, x2, y2] in 0-1", _AS_IS, 1.0),
    Way("[center x, center y, width, height] in 0-1 (YOLO)", _FROM_CXCYWH, 1.0),
    Way("[x, y, width, height] in 0-1", _FROM_XYWH, 1.0),
    Way("[center x, center y, width, height] pixels", _FROM_CXCYWH),
    Way("[x1, y1, x2, y2] percentages", _AS_IS, 100.0),
    Way("[x, y, width, height] percentages", _FROM_XYWH, 100.0),
    Way("[x1, y1, x2, y2] in 0-1000 or of a larger image", _AS_IS, 1000.0),
    Way("[y1, x1, y2, x2] in 0-1000", _FROM_YXYX, 1000.0),
)
XYWH, YOLO = WAYS[0], WAYS[3]
OWN_WAYS: Mapping[Format, Way] = {"coco": XYWH, "yolo": YOLO}
"""Of formats whose own way is not that of our samples, or that of a reader that makes pixels of any."""


def boxes_are_as_declared(dataset: Dataset) -> Iterable[Problem]:
    """The boxes of each file are possible, and likely, in the way that its format writes them."""
    for stats in dataset.splits.values():
        rows = box_table(stats)
        if len(rows):
            yield from _impossible(rows, stats) or _too_small(rows, stats)


def box_table(stats: SplitStats) -> Floats:
    """``(N, 7)``: x1, y1, x2, y2 as written, width and height of the image (0 if unknown), line.

    Numbers beyond every image become ``FAR``, so that they can be reckoned with.
    """
    rows = np.frombuffer(stats.boxes, dtype=np.float32).reshape(-1, BOX_COLUMNS)
    return np.clip(np.nan_to_num(rows, nan=FAR), -FAR, FAR)


def sides_px(rows: Floats) -> Floats:
    """``(N,)`` square root of the area of each row of :func:`box_table`."""
    sides: Floats = np.sqrt(np.prod(np.maximum(0, rows[:, 2:4] - rows[:, :2]), axis=1))
    return sides


def as_written(rows: Floats, way: Way) -> Floats:
    """Rows of :func:`box_table` with the four numbers that a format's own way of writing has for a box."""
    corners = rows[:, :4]
    if way.frame is not None:
        corners = corners / np.maximum(rows[:, [4, 5, 4, 5]], 1) * way.frame
    return np.hstack((np.linalg.solve(way.to_xyxy, corners.T).T, rows[:, 4:]))


def _impossible(rows: Floats, stats: SplitStats) -> list[Problem]:
    """Many boxes are impossible in their format's way, and (nearly) none is in another."""
    own = OWN_WAYS.get(stats.format, PIXELS)
    rows = as_written(rows, own)
    wrong = is_impossible(rows, own)
    count = int(wrong.sum())
    if count < max(LEAST_IMPOSSIBLE, LEAST_SHARE * len(rows)):
        return []
    others = [way for way in (PIXELS, *WAYS) if way != own and own.frame in (None, way.frame)]
    left = {way: int(is_impossible(rows, way).sum()) for way in others}
    best = min(left, key=lambda way: left[way])  # the first of the best
    if left[best] > min(MOST_LEFT * len(rows), count / 10):
        return []
    what = (
        f"the boxes look like {best.name}: as {own.name}, {count} of {len(rows)} are impossible,"
        f" in that way {left[best] or 'none'}"
    )
    return [Problem(what, stats.where(int(rows[wrong][0, 6])), f"write {own.name}")]


def is_impossible(rows: Floats, way: Way) -> NDArray[np.bool_]:
    """``(N,)``: a box has no area or leaves its frame; as pixels also if it lies in the first one."""
    width, height = rows[:, 4:6].T
    x1, y1, x2, y2 = np.array(way.to_xyxy) @ rows[:, :4].T
    if way.frame is None:
        right, bottom = (np.where(side > 0, side, np.inf) for side in (width, height))
        slack = 0.5
        in_a_pixel = (x2 <= 1) & (y2 <= 1)
    else:
        right, bottom = np.full_like(x1, way.frame), np.full_like(y1, way.frame)
        slack = ROUNDING * way.frame
        in_a_pixel = np.zeros_like(x1, dtype=np.bool_)
    outside = (x1 < -slack) | (y1 < -slack) | (x2 > right + slack) | (y2 > bottom + slack)
    impossible: NDArray[np.bool_] = (x2 <= x1) | (y2 <= y1) | outside | in_a_pixel
    return impossible


def _too_small(rows: Floats, stats: SplitStats) -> list[Problem]:
    """All boxes stay within a scale, or a part, of images that are far larger."""
    rows = rows[(rows[:, 4] > 0) & (rows[:, 5] > 0)]
    furthest, sizes = _furthest(rows)
    if len(sizes) < LEAST_IMAGES:
        return []
    for scale, name in SCALES.items():
        larger = sizes.max(axis=1) > scale
        log_chance = np.log(np.minimum(1, scale / sizes[larger])).sum()
        is_full = scale * (1 - 2 * NEAR_ORIGIN) < furthest.max() <= scale * (1 + ROUNDING)
        if larger.sum() >= LEAST_IMAGES and is_full and log_chance < UNLIKELY_LOG:
            what = (
                f"the boxes look like {name}: none reaches beyond {scale:g}, in {larger.sum()} larger images"
            )
            return [Problem(what, str(stats.path), WRITE_PIXELS)]
    part = float((furthest / sizes).max())
    nearest = float((rows[:, :2] / rows[:, 4:6]).max(axis=1).min())
    if part <= LARGEST_PART and nearest < NEAR_ORIGIN and 2 * len(sizes) * math.log(part) < VERY_UNLIKELY_LOG:
        what = (
            f"no box reaches beyond {part:.0%} of its image's width or height, in {len(sizes)} images:"
            " they look like boxes of smaller images"
        )
        return [Problem(what, str(stats.path), WRITE_PIXELS)]
    return []


def _furthest(rows: Floats) -> tuple[Floats, Floats]:
    """Largest x and y of a box, and width and height, of each image: two times ``(images, 2)``."""
    lines, index = np.unique(rows[:, 6], return_inverse=True)
    furthest, sizes = np.zeros((len(lines), 2)), np.zeros((len(lines), 2))
    np.maximum.at(furthest, index, rows[:, 2:4])
    sizes[index] = rows[:, 4:6]
    return furthest, sizes


CHECKS: Mapping[str, Check] = {
    "config.boxes.format": Check(boxes_are_as_declared, "the boxes can be what their format says"),
}
