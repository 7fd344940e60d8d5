"""Large images in windows beside the whole (``infer.tiles``), and one prediction of what each view shows.

    sample ─► views: the whole, windows ─► a prediction each ─► boxes moved to the image ─► merged by label

What a window shows whole comes first, then what the whole image shows, then what a window's edge cuts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import numpy as np

from qwendet.answers.diagnostics import AnswerFacts
from qwendet.config.schema import Config, InferConfig
from qwendet.data.images import MIN_IMAGE_SIDE, image_size, open_image
from qwendet.data.samples import Sample
from qwendet.data.windows import Window, require_windows, windows_by
from qwendet.encoding.image_tokens import image_limits
from qwendet.families.family import PixelLimits
from qwendet.inference.detections import Detection, Prediction
from qwendet.inference.text_answers import best_of, rounded

EDGE = 0.01
"""Share of a window's side: a box that ends nearer to an edge inside the image is taken to be cut by it."""
SAME = 0.5
"""Least overlap of two boxes of one object: IoU, or the share of a box that a better view's covers."""


@dataclass(frozen=True)
class View:
    """One look at a sample's image.

    Attributes:
        sample: the sample itself, or one whose image has the size of the window.
        window: part of the image that is seen; ``None`` is the whole.
    """

    sample: Sample
    window: Window | None = None


class Tiles:
    """Views of samples, and their predictions put together; made anew for each run, as it keeps images."""

    def __init__(self, settings: InferConfig, limits: PixelLimits) -> None:
        self._settings, self._limits = settings, limits
        self._open = lru_cache(maxsize=2)(open_image)

    def views(self, sample: Sample) -> list[View]:
        """The whole image, then its windows, if there are several."""
        turn, whole = sample.student, View(sample)
        if self._settings.tiles == "off":  # nobody needs the image's size
            return [whole]
        size = turn.declared_size or image_size(turn.image, turn.root, sample.where)
        windows = windows_by(self._settings, size, self._limits)
        return [whole, *(_view(sample, window) for window in windows)] if len(windows) > 1 else [whole]

    def opened(self, view: View) -> Sample:
        """The sample to predict; of a window with its pixels."""
        if view.window is None:
            return view.sample
        turn, where = view.sample.student, view.sample.where
        image = self._open(turn.image, turn.root, where)
        return replace(view.sample, student=replace(turn, pixels=image.crop(view.window)))

    def predict(
        self, samples: Iterable[Sample], predict: Callable[[Iterator[Sample]], Iterator[Prediction]]
    ) -> Iterator[Prediction]:
        """Predict samples as they come, in order.

        Args:
            samples: with their whole images.
            predict: predicts views in order; its batches may be of several samples.
        """
        waiting: deque[list[View]] = deque()

        def opened() -> Iterator[Sample]:
            for sample in samples:
                waiting.append(self.views(sample))
                yield from map(self.opened, waiting[-1])

        found = predict(opened())
        for first in found:
            views = waiting.popleft()
            yield self.merged(views, [first, *islice(found, len(views) - 1)])

    def merged(self, views: Sequence[View], found: Sequence[Prediction]) -> Prediction:
        """One prediction of all views of an image; the whole image's own if there is no other."""
        whole, *_ = found
        if len(found) == 1:
            return whole
        size = (whole.width, whole.height)
        kept: list[Detection] = []
        for source in ("head", "text"):
            seen = [
                _Seen(item, index, *_moved(item, view.window, size))
                for index, (view, prediction) in enumerate(zip(views, found, strict=True))
                for item in prediction.detections
                if item.source == source
            ]
            labels = dict.fromkeys(item.detection.desc for item in seen)
            each = [merge([item for item in seen if item.detection.desc == label]) for label in labels]
            kept += best_of([item for items in each for item in items], self._settings)
        kept.sort(key=lambda item: -item.score)
        rejected = sum(prediction.rejected for prediction in found)
        return replace(whole, detections=tuple(kept), rejected=rejected, answer=_facts(found))


@dataclass(frozen=True)
class _Seen:
    """A detection of a view.

    Attributes:
        detection: as it was found, in the view's own pixels.
        view: which view.
        box: the same in pixels of the image.
        rank: 0 for a whole object in a window, 1 for one in the whole image, 2 for what an edge cuts.
    """

    detection: Detection
    view: int
    box: tuple[float, float, float, float]
    rank: int


def _view(sample: Sample, window: Window) -> View:
    left, top, right, bottom = window
    turn = replace(sample.student, objects=(), width=right - left, height=bottom - top)
    return View(replace(sample, student=turn), window)


def _moved(
    item: Detection, window: Window | None, size: tuple[int, int]
) -> tuple[tuple[float, float, float, float], int]:
    """A window's box in pixels of the image, and its rank."""
    if window is None:
        return item.bbox_2d, 1
    (left, top, right, bottom), (x1, y1, x2, y2) = window, item.bbox_2d
    near_x, near_y = EDGE * (right - left), EDGE * (bottom - top)
    is_cut = (
        (left > 0 and x1 <= near_x)
        or (top > 0 and y1 <= near_y)
        or (right < size[0] and x2 >= right - left - near_x)
        or (bottom < size[1] and y2 >= bottom - top - near_y)
    )
    return rounded((x1 + left, y1 + top, x2 + left, y2 + top)), 2 * is_cut


def merge(seen: Sequence[_Seen]) -> list[Detection]:
    """What the views found of one label, each object once: non-maximum suppression between views.

    In the order of rank and score, one is left out if a better one of another view is the same object: by
    IoU, or, for what is not whole in a window, by the share of it that the other covers. Boxes of one view
    never suppress each other.
    """
    order = sorted(seen, key=lambda item: (item.rank, -item.detection.score))
    boxes = np.array([item.box for item in order], dtype=np.float64).reshape(-1, 4)
    views, ranks = (np.array([getattr(item, name) for item in order]) for name in ("view", "rank"))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    is_left_out = np.zeros(len(order), dtype=np.bool_)
    for index, box in enumerate(boxes):
        if is_left_out[index]:
            continue
        low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        of = np.where(ranks == 0, area + area[index] - common, area)
        is_left_out[index + 1 :] |= ((common >= SAME * of) & (views != views[index]))[index + 1 :]
    kept = zip(order, is_left_out, strict=True)
    return [replace(item.detection, bbox_2d=item.box) for item, is_out in kept if not is_out]


def _facts(found: Sequence[Prediction]) -> AnswerFacts | None:
    """The answers of several views as one: texts in their order, counts added up."""
    facts = [item.answer for item in found if item.answer is not None]
    if not facts:
        return None
    numbers = ("boxes", "rejected", "repeated", "outside", "unknown_labels")
    return AnswerFacts(
        text="\n".join(fact.text for fact in facts),
        truncated=any(fact.truncated for fact in facts),
        unreadable=any(fact.unreadable for fact in facts),
        **{name: sum(getattr(fact, name) for fact in facts) for name in numbers},
    )


def require_tiles_that_fit(config: Config, samples: Sequence[Sample]) -> None:
    """Refuse windows that cut no image, or of fewer pixels than one image token covers.

    Raises:
        ConfigError: naming sizes.
    """
    if config.infer.tiles not in ("off", "auto"):
        turns = ((sample.student, sample.where) for sample in samples)
        sizes = {turn.declared_size or image_size(turn.image, turn.root, where) for turn, where in turns}
        limits = image_limits(config)
        least = MIN_IMAGE_SIDE if limits is None else limits.unit
        require_windows(sizes, config.infer.tiles, config.infer.overlap, least, "infer.tiles")
