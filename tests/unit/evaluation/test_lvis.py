"""Federated annotations are measured as the lvis package (0.5.3) measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.evaluation import coco_ground_truth, coco_metrics, coco_results
from qwendet.evaluation.compare import Resampler
from qwendet.evaluation.scores import score_run
from qwendet.inference.detections import Detection, Prediction

LABELS = tuple(f"label {number}" for number in range(12))
FREQUENCY = {label: "rcf"[number % 3] for number, label in enumerate(LABELS)}
SIDE = 600
Box = tuple[float, float, float, float]

NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AP_r", "AP_c", "AP_f",
    "AR_300", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
RECORDED = {
    0: (
        0.042228562173,
        0.072192837527,
        0.046080709592,
        0.350661834041,
        0.026799955603,
        0.431936095395,
        0.040379430364,
        0.063763111401,
        0.022543144755,
        0.422296763862,
        0.378310185185,
        0.401835317460,
        0.481211219336,
    ),
    1: (
        0.045093373106,
        0.074630415567,
        0.055728388580,
        0.447181557441,
        0.017201895250,
        0.469153635602,
        0.050581221617,
        0.055313905147,
        0.029384992552,
        0.473231116996,
        0.466620370370,
        0.444097222222,
        0.520763888889,
    ),
    2: (
        0.050563410360,
        0.079230663377,
        0.056156071277,
        0.448631247053,
        0.058790566753,
        0.410254421047,
        0.061635813315,
        0.051801362268,
        0.038253055496,
        0.463350165003,
        0.466944444444,
        0.467390873016,
        0.466267116722,
    ),
}
"""What ``lvis.LVISEval`` gives for the boxes of :func:`federated_world`, by seed."""


def federated_world(seed: int, images: int = 25) -> tuple[list[Sample], list[Prediction]]:
    """Some labels of an image are annotated, some are absent, some not exhaustive, the others unknown."""
    draw = np.random.default_rng(seed)
    samples, predictions = [], []
    for index in range(images):
        order = draw.permutation(LABELS).tolist()
        present, absent, unknown = order[:4], order[4:7], order[7:]
        objects, found = [], []
        for label in present:
            for _ in range(draw.integers(1, 4)):
                x, y, size = *draw.uniform(0, 300, 2), draw.choice([12, 60, 200])
                box = (x, y, x + size, y + size * draw.uniform(0.5, 1.2))
                objects.append(DetectedObject(box, label, frequency=FREQUENCY[label]))
                for _ in range(draw.integers(0, 3)):
                    x1, y1, x2, y2 = np.add(box, draw.normal(0, 0.07 * size, 4)).round(2).tolist()
                    found.append((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1), label))
        for label in (*absent, *unknown, *present[:2]):
            for _ in range(draw.integers(0, 60)):
                x, y = draw.uniform(0, 400, 2).round(2).tolist()
                found.append((x, y, x + 50.0, y + 70.0, label))
        scores = draw.random(len(found)).tolist()
        detections = [
            Detection((x1, y1, x2, y2), label, score, "head")
            for (x1, y1, x2, y2, label), score in zip(found, scores, strict=True)
        ]
        detections.sort(key=lambda item: -item.score)
        turn = Turn(
            f"{index}.jpg", tuple(objects), neg_labels=tuple(absent), not_exhaustive_labels=(present[0],)
        )
        samples.append(Sample(turn))
        predictions.append(Prediction(f"{index}.jpg", SIDE, SIDE, tuple(detections), 0))
    return samples, predictions


def metrics_of(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, float]:
    truth = coco_ground_truth(samples, predictions, LABELS)
    return coco_metrics(truth, coco_results(samples, predictions, LABELS, "head"))


@pytest.mark.parametrize("seed", RECORDED)
def test_metrics__are_those_of_the_lvis_package(seed: int) -> None:
    samples, predictions = federated_world(seed)
    assert max(len(prediction.detections) for prediction in predictions) > 300
    found = metrics_of(samples, predictions)
    assert [found[name] for name in NAMES] == pytest.approx(RECORDED[seed], abs=1e-11)


def test_unjudged_labels__are_no_false_alarms() -> None:
    """One object found; beside it detections of an absent, a not exhaustive and an unknown label."""
    box = (10.0, 10.0, 60.0, 60.0)
    elsewhere = (200.0, 200.0, 300.0, 300.0)
    cat, dog, owl, hen = LABELS[:4]
    objects = tuple(DetectedObject(box, label, frequency="r") for label in (cat, dog))
    turn = Turn("a.jpg", objects, neg_labels=(owl,), not_exhaustive_labels=(dog,))
    found = [Detection(box, label, 0.5, "head") for label in (cat, dog)]
    found += [Detection(elsewhere, label, 0.9, "head") for label in (cat, dog, owl, hen)]
    samples, predictions = [Sample(turn)], [Prediction("a.jpg", SIDE, SIDE, tuple(found), 0)]
    truth = coco_ground_truth(samples, predictions, LABELS)
    run = score_run(truth, samples, predictions, LABELS, "head")
    ap = {label.label: label.AP for label in run.labels}
    assert ap[cat] == pytest.approx(0.5)
    assert ap[dog] == pytest.approx(1.0)
    assert run.metrics["AP_r"] == pytest.approx(0.75)
    assert run.metrics["AP_f"] is None
    counted = sorted(LABELS[category - 1] for category in run.matches.category[run.matches.is_false])
    assert counted == sorted([cat, owl])

    plain = [Sample(replace(turn, neg_labels=None, not_exhaustive_labels=()))]
    truth = coco_ground_truth(plain, predictions, LABELS)
    assert "AP_r" not in coco_metrics(truth, coco_results(plain, predictions, LABELS, "head"))
    (ap_of_dog,) = [
        x.AP for x in score_run(truth, plain, predictions, LABELS, "head").labels if x.label == dog
    ]
    assert ap_of_dog == pytest.approx(0.5)


def test_compare__resamples_by_the_same_rules() -> None:
    samples, predictions = federated_world(0)
    truth = coco_ground_truth(samples, predictions, LABELS)
    results = coco_results(samples, predictions, LABELS, "head")
    found = Resampler(truth, results).metrics(np.arange(len(samples)))
    whole = metrics_of(samples, predictions)
    assert found == {name: pytest.approx(whole[name]) for name in ("AP", "AP50", "AP75", "AR_100")}


def test_expressions__accuracy_is_that_of_the_best_box() -> None:
    """Three expressions: found first, found second, and not found; one category for all."""
    here, there = (10.0, 10.0, 60.0, 60.0), (200.0, 200.0, 300.0, 300.0)
    texts = ("the cat left", "the other cat", "a dog")
    samples = [Sample(Turn("a.jpg", (DetectedObject(here, text),), labels=(text,))) for text in texts]
    scores = ((0.9, 0.1), (0.1, 0.9), (None, 0.9))
    predictions = [
        Prediction(
            "a.jpg",
            SIDE,
            SIDE,
            tuple(
                Detection(box, text, score, "head")
                for box, score in zip((here, there), pair, strict=True)
                if score is not None
            ),
            0,
        )
        for text, pair in zip(texts, scores, strict=True)
    ]
    truth = coco_ground_truth(samples, predictions, LABELS)
    assert [category["name"] for category in truth["categories"]] == ["expression"]
    assert [image["expression"] for image in truth["images"]] == list(texts)
    run = score_run(truth, samples, predictions, LABELS, "head")
    assert run.metrics["accuracy"] == pytest.approx(1 / 3)
    assert len(run.labels) == 1
