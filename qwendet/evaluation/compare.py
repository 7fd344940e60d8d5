"""Two runs over the same images: differences, and how sure they are (paired bootstrap by image)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qwendet.evaluation.coco import match, summarise
from qwendet.evaluation.matches import IntArray
from qwendet.evaluation.scores import Run
from qwendet.progress import track

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0
COMPARED = ("AP", "AP50", "AP75", "AR_100")


class Difference(NamedTuple):
    """One metric of two runs, ours minus the other, with its interval; ``None`` where nothing is measured."""

    metric: str
    ours: float | None
    other: float | None
    difference: float | None
    low: float | None
    high: float | None


class Comparison(NamedTuple):
    """Two runs, by name, side by side: the one measured now, and the one it is compared with."""

    ours: str
    other: str
    differences: tuple[Difference, ...]
    resamples: int
    confidence: float
    seed: int


def compare_runs(
    ours: Run,
    other: Run,
    names: tuple[str, str],
    ground_truth: dict[str, Any],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two runs over the same ground truth.

    Images are drawn with replacement, the same for both runs, and COCO's metrics are computed anew by
    pycocotools for each draw; the interval is that of the percentiles of the differences.
    """
    images = len(ground_truth["images"])
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in COMPARED}
    scorers = [Resampler(ground_truth, run.results) for run in (ours, other)]
    with track("drawing images anew", resamples) as advance:
        for index in range(resamples):
            chosen = generator.integers(images, size=images)
            first, second = (scorer.metrics(chosen) for scorer in scorers)
            for name in COMPARED:
                if first[name] >= 0 and second[name] >= 0:  # a draw may hold no object at all
                    drawn[name].append(first[name] - second[name])
            advance(index + 1, "")
    differences = tuple(_difference(name, ours.metrics, other.metrics, drawn[name]) for name in COMPARED)
    return Comparison(*names, differences, resamples, CONFIDENCE, seed)


def _difference(
    name: str, ours: Mapping[str, float | None], other: Mapping[str, float | None], drawn: Sequence[float]
) -> Difference:
    first, second = ours[name], other[name]
    if first is None or second is None or not drawn:
        return Difference(name, first, second, None, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
    return Difference(name, first, second, first - second, low, high)


class Resampler:
    """COCO metrics of one run over images drawn anew: matched once, accumulated for each draw."""

    def __init__(self, ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
        self.evaluation = match(ground_truth, results, only_totals=True)
        images, records = len(ground_truth["images"]), self.evaluation.evalImgs
        self._groups = [records[start : start + images] for start in range(0, len(records), images)]

    def metrics(self, images: IntArray) -> dict[str, float]:
        """AP, AP50, AP75 and AR_100 over as many images, by their place, as there are; -1 without objects."""
        self.evaluation.evalImgs = [group[image] for group in self._groups for image in images]
        found = summarise(self.evaluation)
        return {name: found[name] for name in COMPARED}
