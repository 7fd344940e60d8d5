"""Large images in windows beside the whole (``infer.tiles``), and one prediction of what each view shows.

    sample ─► views: the whole, windows ─► a prediction each ─► boxes moved to the image ─► merged by label

What a window shows whole comes first, then what the whole image shows, then what a window's edge cuts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from qwendet.config.schema import Config, InferConfig
from qwendet.data.images import MIN_IMAGE_SIDE, image_size
from qwendet.data.samples import Sample
from qwendet.data.windows import Window, require_windows, windows_by
from qwendet.encoding.image_tokens import image_limits
from qwendet.errors import DataError
from qwendet.families.family import PixelLimits
from qwendet.inference.detections import Detection, Prediction, combined
from qwendet.inference.text_answers import rounded

EDGE = 0.01
"""Share of a window's side: a box that ends nearer to an edge inside the image is taken to be cut by it."""
SAME = 0.5
"""Least overlap of two boxes of one object: IoU, or the share of a box that a better view's covers."""


class Tiles(NamedTuple):
    """How large images are looked at, by a model whose processor has these limits."""

    settings: InferConfig
    limits: PixelLimits

    def views(self, sample: Sample) -> list[Sample]:
        """The sample with its whole image, then with each window alone, if there are several."""
        turn = sample.student
        if self.settings.tiles == "off":  # nobody needs the image's size
            return [sample]
        size = turn.declared_size or image_size(turn.image, turn.root, sample.where)
        windows = windows_by(self.settings, size, self.limits)
        return [sample, *(_shown(sample, window) for window in windows)] if len(windows) > 1 else [sample]

    def merged(self, views: Sequence[Sample], found: Sequence[Prediction]) -> Prediction:
        """One prediction of all views of an image; the whole image's own if there is no other."""
        whole, *_ = found
        if len(found) == 1:
            return whole
        size = (whole.width, whole.height)
        alike: dict[tuple[str, str], list[_Seen]] = defaultdict(list)
        for index, (view, prediction) in enumerate(zip(views, found, strict=True)):
            for item in prediction.detections:
                seen = _Seen(*_moved(item, view.student.window, size), index)
                alike[item.source, item.desc].append(seen)
        return combined(found, [item for group in alike.values() for item in merge(group)], self.settings)


class _Seen(NamedTuple):
    """A detection of a view, in pixels of the image.

    Its rank is 0 for a whole object in a window, 1 for one in the whole image, 2 for what an edge cuts.
    """

    detection: Detection
    rank: int
    view: int


def _shown(sample: Sample, window: Window) -> Sample:
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    turn = replace(sample.student, objects=(), width=width, height=height, window=window)
    return replace(sample, student=turn)


def _moved(item: Detection, window: Window | None, size: tuple[int, int]) -> tuple[Detection, int]:
    """A view's detection in pixels of the image, and its rank."""
    if window is None:
        return item, 1
    (left, top, right, bottom), (x1, y1, x2, y2) = window, item.bbox_2d
    near_x, near_y = EDGE * (right - left), EDGE * (bottom - top)
    is_cut = (
        (left > 0 and x1 <= near_x)
        or (top > 0 and y1 <= near_y)
        or (right < size[0] and x2 >= right - left - near_x)
        or (bottom < size[1] and y2 >= bottom - top - near_y)
    )
    return replace(item, bbox_2d=rounded((x1 + left, y1 + top, x2 + left, y2 + top))), 2 * is_cut


def merge(seen: Sequence[_Seen]) -> list[Detection]:
    """What the views found of one label, each object once: non-maximum suppression between views.

    In the order of rank and score, one is left out if a better one of another view is the same object: by
    IoU, or, for what is not whole in a window, by the share of it that the other covers. Boxes of one view
    never suppress each other.
    """
    order = sorted(seen, key=lambda item: (item.rank, -item.detection.score))
    boxes = np.array([item.detection.bbox_2d for item in order])
    ranks, views = np.array([(item.rank, item.view) for item in order]).T
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    is_left_out = np.zeros(len(order), dtype=np.bool_)
    for index, box in enumerate(boxes):
        if is_left_out[index]:
            continue
        low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        of = np.where(ranks == 0, area + area[index] - common, area)
        is_left_out[index + 1 :] |= ((common >= SAME * of) & (views != views[index]))[index + 1 :]
    return [item.detection for item, is_out in zip(order, is_left_out, strict=True) if not is_out]


def require_tiles_that_fit(config: Config, samples: Sequence[Sample]) -> None:
    """Refuse windows that cut no image, or of fewer pixels than one image token covers."""
    if config.infer.tiles not in ("off", "auto"):
        sizes = set()
        for sample in samples:
            with suppress(DataError):  # what is broken is reported, or skipped, when it is predicted
                turn = sample.student
                sizes.add(turn.declared_size or image_size(turn.image, turn.root, sample.where))
        limits = image_limits(config)
        least = MIN_IMAGE_SIDE if limits is None else limits.unit
        require_windows(sizes, config.infer.tiles, config.infer.overlap, least, "--tiles (infer.tiles)")
