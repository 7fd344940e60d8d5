"""All numbers of one run: COCO's, precision and recall, label by label, and those of text answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from qwendet.data.samples import Sample
from qwendet.evaluation.coco import are_expressions, coco_results, match, summarise
from qwendet.evaluation.matches import FloatArray, Matches, accuracy, f1_over_ious, matches_of
from qwendet.inference.detections import Prediction, Source

SCORE_MEANINGS: dict[Source, str] = {
    "head": "probability by the detection head",
    "text": "exp(mean log-probability of the box's tokens)",
}
_AP50 = 0  # index of IoU 0.5 among pycocotools' thresholds


class OperatingPoint(NamedTuple):
    """What is found with a score of at least ``threshold``, at IoU 0.5; ``None`` where nothing divides.

    ``mean_iou`` is of the detections that found an object.
    """

    threshold: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    mean_iou: float | None
    true_positives: int
    false_positives: int
    missed: int


class LabelScores(NamedTuple):
    """One label's row: how many boxes count, how well they are found; ``None`` without objects.

    Attributes:
        best_threshold: the score at which this label alone has its best F1.
        at: precision and recall at the run's threshold.
    """

    label: str
    boxes: int
    AP: float | None
    AP50: float | None
    best_threshold: float | None
    at: OperatingPoint


class AnswerTotals(NamedTuple):
    """What is wrong with the text answers of a run; the last five count boxes, the first four answers.

    Attributes:
        unreadable: neither a box nor an empty list can be read.
        truncated: cut at the most tokens.
        repeating: that hold a box, with its label, more than once.
        rejected: incomplete or impossible ones.
        repeated: equal to an earlier one of the answer.
        outside: reach over the edge of the image.
        unknown_labels: their label is not in the set, so that they are not scored.
    """

    answers: int
    unreadable: int
    truncated: int
    repeating: int
    boxes: int
    rejected: int
    repeated: int
    outside: int
    unknown_labels: int


@dataclass(frozen=True)
class Run:
    """Predictions of one kind, and their numbers.

    Attributes:
        source: what answered, which is what the scores are.
        teachers: demonstrations asked for; ``None`` if samples kept what they have.
        predictions: one an image, of this source alone.
        results: the same in COCO's form.
        metrics: COCO's twelve, of federated annotations LVIS's, too, of expressions the share whose best box
            has IoU 0.5; ``None`` where there is nothing to measure.
        at_best: the score with the best F1, over all labels, chosen on these images.
        labels: label by label, in the order of the categories.
        curves: ``(K, 101)`` precision at IoU 0.5 over recall 0, 0.01 … 1; -1 for a label without objects.
        matches: which detection found what.
        answers: of text answers; ``None`` for the head, and for predictions read from a file without them.
        f1_over_ious: F1@mIoU: of the head at the best score, of text over all its boxes.
    """

    source: Source
    teachers: int | None
    predictions: tuple[Prediction, ...]
    results: tuple[dict[str, Any], ...]
    metrics: dict[str, float | None]
    at_best: OperatingPoint
    labels: tuple[LabelScores, ...]
    curves: FloatArray
    matches: Matches
    answers: AnswerTotals | None
    f1_over_ious: float | None

    @property
    def name(self) -> str:
        """For example ``head`` or ``text, 2 teachers``."""
        return run_name(self.source, self.teachers)

    def figures(self) -> dict[str, float | None]:
        """Every number over all labels, by the name that it is shown by."""
        point = self.at_best._asdict().items()
        at_best = {f"{name.replace('_', ' ')} at best F1": value for name, value in point}
        return {**self.metrics, **at_best, "F1@mIoU": self.f1_over_ious}


def run_name(source: Source, teachers: int | None) -> str:
    """Name a run.

    Example:
        >>> run_name("head", None), run_name("text", 0), run_name("text", 1)
        ('head', 'text, no teachers', 'text, 1 teacher')
    """
    if teachers is None:
        return source
    return f"{source}, {teachers or 'no'} teacher{'' if teachers == 1 else 's'}"


def score_run(
    ground_truth: dict[str, Any],
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    labels: Sequence[str],
    source: Source,
    teachers: int | None = None,
) -> Run:
    """Measure the detections of one source; samples and predictions are in the ground truth's order."""
    own = tuple(_of_source(prediction, source) for prediction in predictions)
    results = coco_results(samples, own, labels, source)
    categories = ground_truth["categories"]
    evaluation = match(ground_truth, results)
    metrics = summarise(evaluation)
    if are_expressions(samples):
        metrics = {"accuracy": accuracy(evaluation), **metrics}
    precision = evaluation.eval["precision"][..., 0, -1]  # (T, 101, K): any size, 100 detections
    average = np.stack([precision.mean((0, 1)), precision[_AP50].mean(0)])  # AP and AP50 of each label
    matches = matches_of(ground_truth, results, evaluation)
    threshold = best_threshold(matches)
    return Run(
        source=source,
        teachers=teachers,
        predictions=own,
        results=tuple(results),
        metrics={name: _measured(value) for name, value in metrics.items()},
        at_best=operating_point(matches, threshold),
        labels=tuple(
            _label_scores(category, matches, threshold, *average[:, index])
            for index, category in enumerate(categories)
        ),
        curves=precision[_AP50].T,
        matches=matches,
        answers=answer_totals(own),
        f1_over_ious=f1_over_ious(evaluation, threshold if source == "head" else None),
    )


def best_threshold(matches: Matches) -> float | None:
    """The score at which F1 is best, the highest of several; ``None`` if nothing right was found."""
    counted = ~matches.ignored
    score, is_true = matches.score[counted], matches.is_true[counted]
    if not is_true.any():
        return None
    f1 = 2 * np.cumsum(is_true) / (np.arange(1, len(score) + 1) + len(matches.truth))
    f1[:-1][score[:-1] == score[1:]] = 0.0  # a threshold takes all detections of one score
    return float(score[np.argmax(f1)])


def operating_point(matches: Matches, threshold: float | None) -> OperatingPoint:
    """Precision and recall of the detections with at least a score; of all of them for ``None``."""
    kept = np.ones(len(matches.score), bool) if threshold is None else matches.score >= threshold
    is_true = kept & matches.is_true
    right, wrong = int(is_true.sum()), int((kept & matches.is_false).sum())
    total = len(matches.truth)
    return OperatingPoint(
        threshold=threshold,
        precision=_share(right, right + wrong),
        recall=_share(right, total),
        f1=_share(2 * right, right + wrong + total),
        mean_iou=float(matches.iou[is_true].mean()) if right else None,
        true_positives=right,
        false_positives=wrong,
        missed=total - right,
    )


def answer_totals(predictions: Sequence[Prediction]) -> AnswerTotals | None:
    """Add up what was counted in each answer; ``None`` if an image has no answer."""
    facts = [prediction.answer for prediction in predictions]
    known = [fact for fact in facts if fact is not None]
    if not known or len(known) < len(facts):
        return None
    counted = ("unreadable", "truncated", "boxes", "rejected", "repeated", "outside", "unknown_labels")
    totals = {name: sum(getattr(fact, name) for fact in known) for name in counted}
    return AnswerTotals(len(known), repeating=sum(fact.repeated > 0 for fact in known), **totals)


def _of_source(prediction: Prediction, source: Source) -> Prediction:
    found = tuple(item for item in prediction.detections if item.source == source)
    return replace(prediction, detections=found, answer=prediction.answer if source == "text" else None)


def _label_scores(
    category: dict[str, Any], matches: Matches, threshold: float | None, ap: float, ap50: float
) -> LabelScores:
    own = _of_category(matches, category["id"])
    return LabelScores(
        label=category["name"],
        boxes=len(own.truth),
        AP=_measured(ap),
        AP50=_measured(ap50),
        best_threshold=best_threshold(own),
        at=operating_point(own, threshold),
    )


def _of_category(matches: Matches, category: int) -> Matches:
    rows, truth = matches.category == category, matches.truth_category == category
    of = {name: truth if name.startswith("truth") else rows for name in vars(matches)}
    return Matches(**{name: values[of[name]] for name, values in vars(matches).items()})


def _measured(value: float) -> float | None:
    return None if value < 0 else float(value)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
