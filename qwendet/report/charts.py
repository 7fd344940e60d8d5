"""Curves, calibration and confusion of a run, as numbers that the page can draw without computing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qwendet.evaluation.coco import match
from qwendet.evaluation.matches import FloatArray, IntArray, matches_of
from qwendet.evaluation.scores import Run

SIDE = 100.0
"""Length of an axis in the units of the SVG; the origin is at the upper left."""
BINS = 10
STEPS = 8
"""Of the colour of a confusion's cell."""


class Curve(NamedTuple):
    """A label's precision over recall."""

    label: str
    ap50: float | None
    points: str


class Bin(NamedTuple):
    """Detections of similar score.

    Attributes:
        low: least score.
        right: share that found an object.
    """

    low: float
    mean: float
    right: float
    total: int


class Confusion(NamedTuple):
    """What was detected on objects of each label.

    Attributes:
        rows: labels, and last what is nothing.
        columns: labels, and last what was missed.
        shades: how dark each cell is, of 8 steps, by its share of the row.
    """

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]
    shades: list[list[int]]


def curves_of(run: Run) -> list[Curve]:
    """The mean over the labels with objects, then each of these."""
    present = [index for index, label in enumerate(run.labels) if label.boxes]
    if not present:
        return []
    mean = run.curves[present].mean(axis=0)
    return [
        Curve("", float(mean.mean()), _points(mean)),
        *(
            Curve(run.labels[index].label, run.labels[index].AP50, _points(run.curves[index]))
            for index in present
        ),
    ]


def _points(precision: FloatArray) -> str:
    recall = np.linspace(0, SIDE, len(precision))
    return " ".join(f"{x:.0f},{SIDE - SIDE * y:.1f}" for x, y in zip(recall, precision, strict=True))


def calibration_of(run: Run) -> tuple[list[Bin], float | None]:
    """Scores against the share of right detections, in ten bins, and the expected calibration error.

    The error is the mean of their difference over all detections that count, right at IoU 0.5 (Guo et al.
    2017, eq. 3); ``None`` without any.
    """
    counted = ~run.matches.ignored
    score, is_true = run.matches.score[counted], run.matches.is_true[counted]
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    bins = [
        Bin(index / BINS, float(score[own].mean()), float(is_true[own].mean()), int(own.sum()))
        for index in range(BINS)
        if (own := place == index).any()
    ]
    if not bins:
        return [], None
    return bins, sum(abs(item.mean - item.right) * item.total for item in bins) / len(score)


def confusion_of(run: Run, ground_truth: dict[str, Any]) -> Confusion:
    """Detections of at least the run's threshold, matched with objects whatever their label."""
    categories = [item["id"] for item in ground_truth["categories"]]
    names = [item["name"] for item in ground_truth["categories"]]
    threshold = run.at_best.threshold or 0.0
    results = [result for result in run.results if result["score"] >= threshold]
    counts: IntArray = np.zeros((len(names) + 1, len(names) + 1), dtype=np.int64)
    place = {category: index for index, category in enumerate(categories)}
    truth = {item["id"]: item["category_id"] for item in ground_truth["annotations"] if not item["ignore"]}
    matches = matches_of(ground_truth, results, match(ground_truth, results, with_labels=False))
    for category, found, is_false in zip(matches.category, matches.found, matches.is_false, strict=True):
        if is_false:
            counts[-1, place[category]] += 1
        elif found in truth:  # else it was a crowd or a difficult object
            counts[place[truth.pop(found)], place[category]] += 1
    for category in truth.values():
        counts[place[category], -1] += 1
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shades = np.where(counts > 0, np.ceil(share * STEPS), 0).astype(int)
    return Confusion([*names, "nothing there"], [*names, "missed"], counts.tolist(), shades.tolist())
