"""Metrics: those of pycocotools to the last digit, and by hand where an example is small enough."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qwendet.answers.diagnostics import AnswerFacts
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.errors import DataError
from qwendet.evaluation import METRICS, coco_ground_truth, coco_metrics, coco_results
from qwendet.evaluation.compare import COMPARED, Resampler, compare_runs
from qwendet.evaluation.dataset import foreign_labels, open_dataset
from qwendet.evaluation.saved import align, read_runs
from qwendet.evaluation.scores import Run, operating_point, run_name, score_run
from qwendet.inference.detections import Detection, Prediction, write_predictions

LABELS = ("cat", "dog", "圆 <b>")
SIDE = 600
Box = tuple[float, float, float, float]


def sample(index: int, *objects: DetectedObject) -> Sample:
    return Sample(Turn(f"{index}.jpg", objects))


def prediction(index: int, *found: tuple[Box, str, float]) -> Prediction:
    detections = tuple(Detection(box, desc, score, "head") for box, desc, score in found)
    return Prediction(f"{index}.jpg", SIDE, SIDE, detections, 0)


def random_world(seed: int, images: int = 30) -> tuple[list[Sample], list[Prediction]]:
    """Objects of all sizes, some crowds or difficult; detections near them, doubled, mislabelled, new."""
    draw = np.random.default_rng(seed)
    samples, predictions = [], []
    for index in range(images):
        objects, found = [], []
        for _ in range(draw.integers(0, 6)):
            x, y, size = *draw.uniform(0, 300, 2), draw.choice([10, 50, 150, 250])
            box = (x, y, x + size, y + size * draw.uniform(0.5, 1.2))
            label = LABELS[draw.integers(3)]
            flags = {"crowd": draw.random() < 0.1, "difficult": draw.random() < 0.15}
            objects.append(DetectedObject(box, label, **flags))
            for _ in range(draw.integers(0, 3)):
                moved = tuple(np.add(box, draw.normal(0, 0.08 * size, 4)).round(2).tolist())
                seen = label if draw.random() < 0.85 else LABELS[draw.integers(3)]
                if moved[2] > moved[0] and moved[3] > moved[1]:
                    found.append((moved, seen, round(float(draw.random()), 2)))
        if draw.random() < 0.5:
            found.append(((5.0, 5.0, 80.0, 90.0), LABELS[draw.integers(3)], float(draw.random())))
        samples.append(sample(index, *objects))
        predictions.append(prediction(index, *found))
    return samples, predictions


def by_pycocotools_alone(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> COCOeval:
    """The same evaluation without a line of qwendet's.

    A difficult object has an area outside every range, which is how pycocotools itself can be told to
    ignore one that is no crowd.
    """
    annotations = []
    for image, item in ((image, item) for image, s in enumerate(samples) for item in s.student.objects):
        x1, y1, x2, y2 = item.bbox_2d
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": LABELS.index(item.desc),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": -1 if item.difficult and not item.crowd else (x2 - x1) * (y2 - y1),
                "iscrowd": int(item.crowd),
            }
        )
    results = [
        {
            "image_id": image,
            "category_id": LABELS.index(item.desc),
            "bbox": [*item.bbox_2d[:2], item.bbox_2d[2] - item.bbox_2d[0], item.bbox_2d[3] - item.bbox_2d[1]],
            "score": item.score,
        }
        for image, found in enumerate(predictions)
        for item in found.detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": index} for index in range(len(samples))],
            "annotations": annotations,
            "categories": [{"id": index} for index in range(len(LABELS))],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def scored(
    samples: Sequence[Sample], predictions: Sequence[Prediction], labels: Sequence[str] = LABELS
) -> Run:
    truth = coco_ground_truth(samples, predictions, labels)
    return score_run(truth, samples, predictions, labels, "head")


# COCO


@pytest.mark.parametrize("seed", range(5))
def test_metrics__are_pycocotools_own(seed: int) -> None:
    samples, predictions = random_world(seed)
    run, reference = scored(samples, predictions), by_pycocotools_alone(samples, predictions)
    found = [-1.0 if run.metrics[name] is None else run.metrics[name] for name in METRICS]
    np.testing.assert_allclose(found, reference.stats, rtol=0, atol=1e-6)
    precision = reference.eval["precision"][..., 0, -1]
    for index, label in enumerate(run.labels):
        assert pytest.approx(precision[..., index].mean(), abs=1e-6) == label.AP
        assert pytest.approx(precision[0, :, index].mean(), abs=1e-6) == label.AP50
        np.testing.assert_allclose(run.curves[index], precision[0, :, index], atol=1e-6)


def test_f1_over_ious__is_the_f1_of_means_over_labels_and_thresholds() -> None:
    """cat: 1 of 2 found, 1 false at any IoU; dog: IoU 0.6, so right at 0.5, 0.55 and 0.6 alone."""
    objects = (
        DetectedObject((0, 0, 100, 100), "cat"),
        DetectedObject((300, 0, 400, 100), "cat"),
        DetectedObject((0, 300, 100, 400), "dog"),
        DetectedObject((300, 300, 400, 400), "dog", difficult=True),
    )
    found = (
        ((0.0, 0.0, 100.0, 100.0), "cat", 0.9),
        ((500.0, 500.0, 600.0, 600.0), "cat", 0.9),
        ((0.0, 300.0, 100.0, 360.0), "dog", 0.9),
        ((300.0, 300.0, 400.0, 400.0), "dog", 0.9),  # of a difficult object: counts neither way
    )
    run = scored([sample(0, *objects)], [prediction(0, *found)])
    assert run.f1_over_ious == pytest.approx(0.4)  # precision (0.5 + 0.3) / 2, recall the same
    assert scored([sample(0, *objects)], [prediction(0)]).f1_over_ious == 0.0
    assert scored([sample(0)], [prediction(0, *found)]).f1_over_ious is None


@pytest.mark.parametrize("through", [None, "jsonl", "coco"])
def test_metrics_by_size__of_polygons_are_pycocotools_own_on_the_original_file(
    through: Any, shared: Path, tmp_path: Path
) -> None:
    """24 of the 165 nuts are of medium size by their polygon, and of large size by their box."""
    source = shared / "data" / "nuts" / "data"
    if through is not None:
        convert_dataset(source, tmp_path / "data", Conversion(target=through))
    samples, *_ = open_dataset(source if through is None else tmp_path / "data")
    predictions = near_misses(samples)
    labels = tuple(dict.fromkeys(item.desc for sample in samples for item in sample.student.objects))
    metrics = scored(samples, predictions, labels).metrics
    expected = by_pycocotools_on_the_file(source / "trainval.json", predictions)
    found = [-1.0 if metrics[name] is None else metrics[name] for name in METRICS]
    np.testing.assert_array_equal(found, expected)
    assert 0 < metrics["AP_medium"] < 1
    assert 0 < metrics["AP_large"] < 1
    by_box = scored(without_areas(samples), predictions, labels).metrics
    assert by_box["AP"] == metrics["AP"]
    assert abs(by_box["AP_medium"] - metrics["AP_medium"]) > 1e-4
    assert abs(by_box["AP_large"] - metrics["AP_large"]) > 1e-4


def near_misses(samples: Sequence[Sample]) -> list[Prediction]:
    """Each box moved a little, with a score that no other has, some of another label, some missing."""
    draw = np.random.default_rng(0)
    labels = sorted({item.desc for sample in samples for item in sample.student.objects})
    predictions = []
    for sample in sorted(samples, key=lambda sample: Path(sample.student.image).name):
        turn = sample.student
        found = []
        for item in sorted(turn.objects, key=lambda item: item.bbox_2d):
            side = item.bbox_2d[2] - item.bbox_2d[0]
            moved = np.add(item.bbox_2d, draw.normal(0, 0.06 * side, 4)).round(2).tolist()
            label = item.desc if draw.random() < 0.9 else labels[draw.integers(len(labels))]
            if draw.random() < 0.9:
                found.append(Detection(tuple(moved), label, float(draw.random()), "head"))
        predictions.append(Prediction(turn.image, turn.width or 0, turn.height or 0, tuple(found), 0))
    by_image = {prediction.image: prediction for prediction in predictions}
    return [by_image[sample.student.image] for sample in samples]


def by_pycocotools_on_the_file(file: Path, predictions: Sequence[Prediction]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        image_ids = {Path(entry["file_name"]).name: key for key, entry in truth.imgs.items()}
        category_ids = {entry["name"]: key for key, entry in truth.cats.items()}
        results = [
            {
                "image_id": image_ids[Path(prediction.image).name],
                "category_id": category_ids[item.desc],
                "bbox": [
                    *item.bbox_2d[:2],
                    item.bbox_2d[2] - item.bbox_2d[0],
                    item.bbox_2d[3] - item.bbox_2d[1],
                ],
                "score": item.score,
            }
            for prediction in predictions
            for item in prediction.detections
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def without_areas(samples: Sequence[Sample]) -> list[Sample]:
    return [
        replace(
            sample,
            student=replace(
                sample.student, objects=tuple(replace(item, area=None) for item in sample.student.objects)
            ),
        )
        for sample in samples
    ]


def test_metrics__a_difficult_object_is_neither_missed_nor_a_false_alarm() -> None:
    easy, hard = (10.0, 10.0, 50.0, 50.0), (100.0, 100.0, 200.0, 200.0)
    samples = [sample(0, DetectedObject(easy, "cat"), DetectedObject(hard, "cat", difficult=True))]
    without = scored(samples, [prediction(0, (easy, "cat", 0.5))])
    found = scored(samples, [prediction(0, (easy, "cat", 0.5), (hard, "cat", 0.9))])
    for run in (without, found):
        assert (run.metrics["AP"], run.metrics["AR_100"]) == (pytest.approx(1), 1)
        assert run.at_best[-3:] == (1, 0, 0)
    plain = [sample(0, DetectedObject(easy, "cat"), DetectedObject(hard, "cat"))]
    assert scored(plain, [prediction(0, (easy, "cat", 0.5))]).at_best.missed == 1


def test_metrics__a_crowd_takes_in_all_that_lies_in_it_a_difficult_object_only_what_fits() -> None:
    whole, parts = (0.0, 0.0, 200.0, 200.0), [(0.0, 0.0, 90.0, 90.0), (100.0, 100.0, 190.0, 190.0)]
    other = DetectedObject((300.0, 300.0, 400.0, 400.0), "cat")
    predictions = [prediction(0, *((part, "cat", 0.9) for part in parts), ((300, 300, 400, 400), "cat", 0.5))]
    crowd = scored([sample(0, DetectedObject(whole, "cat", crowd=True), other)], predictions)
    difficult = scored([sample(0, DetectedObject(whole, "cat", difficult=True), other)], predictions)
    assert (crowd.at_best.false_positives, crowd.metrics["AP50"]) == (0, pytest.approx(1))
    assert (difficult.at_best.false_positives, difficult.metrics["AP50"]) == (2, pytest.approx(1 / 3))


# Precision, recall, threshold


def test_at_best__by_hand() -> None:
    a, b, c = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)
    samples = [sample(0, *(DetectedObject(box, "cat") for box in (a, b, c)))]
    off = (20.0, 0.0, 30.0, 8.0)  # IoU 0.8 with b
    found = [(a, "cat", 0.9), (a, "cat", 0.8), (off, "cat", 0.7), ((60, 0, 70, 10), "cat", 0.2)]
    run = scored(samples, [prediction(0, *found)])
    assert run.at_best == (
        0.7, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(0.9), 2, 1, 1,
    )  # fmt: skip
    assert operating_point(run.matches, 0.75)[1:3] == (0.5, pytest.approx(1 / 3))
    assert operating_point(run.matches, None).false_positives == 2
    assert run.labels[0].at == run.at_best
    assert run.labels[1].at[1:5] == (None, None, None, None)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_best_threshold__no_other_score_has_a_better_f1(seed: int) -> None:
    samples, predictions = random_world(seed, images=8)
    run = scored(samples, predictions)
    tried = [operating_point(run.matches, score).f1 for score in run.matches.score]
    if run.at_best.threshold is None:
        assert not run.matches.is_true.any()
    else:
        assert run.at_best.f1 == pytest.approx(max(value for value in tried if value is not None))
        best = [score for score, f1 in zip(run.matches.score, tried, strict=True) if f1 == run.at_best.f1]
        assert run.at_best.threshold == max(best)


# Degenerate


def test_no_detections__everything_is_missed_and_nothing_divides_by_zero() -> None:
    samples = [sample(0, DetectedObject((1, 1, 9, 9), "cat"))]
    run = scored(samples, [prediction(0)])
    assert run.metrics["AP"] == run.metrics["AR_100"] == 0
    nothing_to_find = {name for name in METRICS if name.endswith(("_medium", "_large"))}
    assert run.metrics == {name: None if name in nothing_to_find else 0.0 for name in METRICS}
    assert run.at_best == (None, None, 0.0, 0.0, None, 0, 0, 1)
    assert [label.AP for label in run.labels] == [0.0, None, None]


def test_no_objects__nothing_is_measured_but_false_alarms() -> None:
    run = scored([sample(0)], [prediction(0, ((1, 1, 9, 9), "cat", 0.5))])
    assert run.metrics == dict.fromkeys(METRICS)
    assert run.at_best == (None, 0.0, None, 0.0, None, 0, 1, 0)
    only_difficult = [sample(0, DetectedObject((1, 1, 9, 9), "cat", difficult=True))]
    assert scored(only_difficult, [prediction(0)]).metrics == dict.fromkeys(METRICS)
    assert coco_metrics(coco_ground_truth([sample(0)], [prediction(0)], LABELS), []) == dict.fromkeys(
        METRICS, -1
    )


def test_labels_that_differ__objects_of_foreign_labels_are_missed_and_said() -> None:
    samples = [sample(0, DetectedObject((1, 1, 9, 9), "cat"), DetectedObject((20, 20, 90, 90), "bird"))]
    predictions = [prediction(0, ((1, 1, 9, 9), "cat", 0.5), ((20, 20, 90, 90), "bird", 0.9))]
    run = scored(samples, predictions)
    assert [label.label for label in run.labels] == [*LABELS, "bird"]
    assert (run.metrics["AP"], run.at_best.missed) == (pytest.approx(0.5), 1)
    assert foreign_labels(samples, LABELS, "x") == [
        "The model does not know 'bird': 1 boxes count as missed."
    ]
    with pytest.raises(
        DataError, match="no label in common: the data has 'bird', 'cat', the model knows 'dog'"
    ):
        foreign_labels(samples, ["dog"], "x")
    assert foreign_labels([sample(0)], ["dog"], "x") == []


# Text answers


def test_answers__are_added_up() -> None:
    facts = [
        AnswerFacts(
            "…",
            truncated=True,
            unreadable=False,
            boxes=5,
            rejected=1,
            repeated=2,
            outside=1,
            unknown_labels=0,
        ),
        AnswerFacts(
            "no",
            truncated=False,
            unreadable=True,
            boxes=0,
            rejected=0,
            repeated=0,
            outside=0,
            unknown_labels=3,
        ),
    ]
    samples = [sample(index, DetectedObject((1, 1, 9, 9), "cat")) for index in range(2)]
    predictions = [replace(prediction(index), answer=fact) for index, fact in enumerate(facts)]
    truth = coco_ground_truth(samples, predictions, LABELS)
    assert score_run(truth, samples, predictions, LABELS, "text").answers == (2, 1, 1, 1, 5, 1, 2, 1, 3)
    assert score_run(truth, samples, predictions, LABELS, "head").answers is None
    assert score_run(truth, samples, [prediction(0), predictions[1]], LABELS, "text").answers is None


def test_labels_of_samples__what_they_do_not_ask_is_no_false_alarm() -> None:
    """A hat is asked in the first image alone, a dog in the second alone."""
    box, hat = (10.0, 10.0, 90.0, 90.0), "a red hat"
    samples = [
        Sample(Turn("0.jpg", (DetectedObject(box, "cat"),), labels=("cat", hat))),
        Sample(Turn("0.jpg", (DetectedObject(box, "dog"),))),
    ]
    found = [(box, "cat", 0.9), (box, "dog", 0.8), (box, hat, 0.7)]
    predictions = [replace(prediction(index, *found), image="0.jpg") for index in range(2)]
    run = scored(samples, predictions)
    assert [label.label for label in run.labels] == [*LABELS, hat]
    names = {1: "cat", 2: "dog", 4: hat}
    assert [(item["image_id"], names[item["category_id"]]) for item in run.results] == [
        (0, "cat"), (0, hat), (1, "cat"), (1, "dog"),
    ]  # fmt: skip
    assert [label.AP50 for label in run.labels[:2]] == pytest.approx([1.0, 1.0])
    assert align(predictions, ["0.jpg", "0.jpg"], "x") == predictions


# Comparison


def test_resampler__is_pycocotools_over_the_images_written_out_again() -> None:
    samples, predictions = random_world(3)
    truth = coco_ground_truth(samples, predictions, LABELS)
    resampler = Resampler(truth, coco_results(samples, predictions, LABELS, "head"))
    for seed in range(4):
        chosen = np.random.default_rng(seed).integers(len(samples), size=len(samples))
        again = by_pycocotools_alone([samples[i] for i in chosen], [predictions[i] for i in chosen])
        metrics = dict(zip(METRICS, again.stats, strict=True))
        assert resampler.metrics(chosen) == pytest.approx(
            {name: metrics[name] for name in COMPARED}, abs=1e-6
        )


def test_compare__a_run_with_itself_differs_in_nothing() -> None:
    samples, predictions = random_world(1)
    run, truth = scored(samples, predictions), coco_ground_truth(samples, predictions, LABELS)
    comparison = compare_runs(run, run, ("a", "b"), truth, resamples=20)
    assert [item[3:] for item in comparison.differences] == [(0.0, 0.0, 0.0)] * len(COMPARED)
    assert (comparison.resamples, comparison.confidence, comparison.seed) == (20, 0.95, 0)


def test_compare__a_run_without_every_other_detection_is_worse_beyond_doubt_and_repeatably() -> None:
    samples, predictions = random_world(2, images=60)
    poorer = [replace(item, detections=item.detections[:1]) for item in predictions]
    truth = coco_ground_truth(samples, predictions, LABELS)
    runs = scored(samples, poorer), scored(samples, predictions)
    first, second = (compare_runs(*runs, ("a", "b"), truth, resamples=100) for _ in range(2))
    assert first == second
    ap = first.differences[0]
    assert ap.difference == pytest.approx(ap.ours - ap.other)
    assert ap.low < ap.difference < ap.high < 0


def test_compare__with_a_run_that_found_nothing() -> None:
    samples, predictions = random_world(4)
    truth = coco_ground_truth(samples, predictions, LABELS)
    nothing = scored(samples, [prediction(index) for index in range(len(samples))])
    comparison = compare_runs(scored(samples, predictions), nothing, ("a", "b"), truth, resamples=30)
    assert comparison.differences[0].other == 0
    assert comparison.differences[0].low > 0


def test_compare__of_images_without_objects_says_nothing() -> None:
    run = scored([sample(0)], [prediction(0, ((1, 1, 9, 9), "cat", 0.5))])
    truth = coco_ground_truth([sample(0)], [prediction(0)], LABELS)
    assert compare_runs(run, run, ("a", "b"), truth, resamples=3).differences[0] == ("AP", *[None] * 5)


# Files


def test_read_runs__predictions_come_back_as_they_were_written(tmp_path: Path) -> None:
    _, predictions = random_world(5, images=4)
    write_predictions(predictions, tmp_path / "p.jsonl")
    assert read_runs(tmp_path / "p.jsonl") == {"head": ("head", predictions)}
    assert align(reversed(predictions), [item.image for item in predictions], "x") == predictions
    with pytest.raises(DataError, match=r"knows nothing of 1 of 2 images, such as 'new\.jpg'"):
        align(predictions, ["0.jpg", "new.jpg"], "x")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": [{}]}', '{"runs": 3}', "\xff"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_read_runs__anything_else_is_refused(content: str, suffix: str, tmp_path: Path) -> None:
    if (content, suffix) == ("", "jsonl"):
        return  # no line, no prediction: the images are missing then
    file = tmp_path / f"other.{suffix}"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="no run that can be compared with"):
        read_runs(file)


def test_read_runs__a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the other run"):
        read_runs(tmp_path / "nowhere.json")


def test_prediction__the_output_file_says_nothing_of_the_answer() -> None:
    keys = ["image", "width", "height", "detections", "rejected"]
    assert list(json.loads(prediction(0).to_json())) == keys


def test_run_name__says_source_and_teachers() -> None:
    assert [run_name("text", count) for count in (None, 0, 1, 2)] == [
        "text", "text, no teachers", "text, 1 teacher", "text, 2 teachers",
    ]  # fmt: skip
