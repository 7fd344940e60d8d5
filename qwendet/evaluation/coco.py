"""COCO ground truth, COCO results and COCO metrics (by pycocotools) of predictions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qwendet.config.contradictions import METRICS
from qwendet.data.samples import Sample
from qwendet.inference.detections import Prediction, Source


def coco_ground_truth(
    samples: Sequence[Sample], predictions: Sequence[Prediction], labels: Sequence[str]
) -> dict[str, Any]:
    """Ground truth in COCO's form: image ids count from 0, category ids from 1, boxes xywh.

    Args:
        samples: the samples that were predicted, in order. Crowds and difficult objects are not scored: a
            crowd takes in any number of detections that lie in it, a difficult object the one that fits it.
        predictions: their predictions, which know the images' sizes.
        labels: the label set; other labels become categories after it. What nobody asks for is missed.
    """
    category_of = _categories(samples, labels)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (sample, prediction) in enumerate(zip(samples, predictions, strict=True)):
        images.append(
            {
                "id": image_id,
                "file_name": sample.student.image,
                "width": prediction.width,
                "height": prediction.height,
            }
        )
        for item in sample.student.objects:
            x, y, width, height = xywh(item.bbox_2d)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_of[item.desc],
                    "bbox": [x, y, width, height],
                    "area": width * height if item.area is None else item.area,
                    "iscrowd": int(item.crowd),
                    "ignore": int(item.crowd or item.difficult),
                }
            )
    categories = [{"id": category, "name": label} for label, category in category_of.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _categories(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, int]:
    """Category ids from 1: of the label set, then of what else is asked in samples or is there."""
    turns = [sample.student for sample in samples]
    others = {label for turn in turns for label in (turn.labels or [item.desc for item in turn.objects])}
    return {
        label: index for index, label in enumerate([*labels, *sorted(others.difference(labels))], start=1)
    }


def coco_results(
    samples: Sequence[Sample], predictions: Sequence[Prediction], labels: Sequence[str], source: Source
) -> list[dict[str, Any]]:
    """Detections of one source in COCO's results form, of labels that their samples ask for.

    Args:
        samples: what was predicted.
        predictions: one a sample.
        labels: the label set, which samples ask for that do not say what they ask.
        source: whose detections.
    """
    category_of, default = _categories(samples, labels), frozenset(labels)
    return [
        {
            "image_id": image_id,
            "category_id": category_of[detection.desc],
            "bbox": list(xywh(detection.bbox_2d)),
            "score": detection.score,
        }
        for image_id, (sample, prediction) in enumerate(zip(samples, predictions, strict=True))
        for detection in prediction.detections
        if detection.source == source and detection.desc in (sample.student.labels or default)
    ]


def xywh(box_xyxy: Sequence[float]) -> tuple[float, float, float, float]:
    """Corner, width and height of an xyxy box."""
    x1, y1, x2, y2 = box_xyxy
    return x1, y1, x2 - x1, y2 - y1


class BoxEvaluation(COCOeval):  # type: ignore[misc]
    """pycocotools' evaluation, which takes ``ignore`` as it is given; its own lets only crowds be ignored."""

    def _prepare(self) -> None:
        ignored = {item["id"] for item in self.cocoGt.dataset["annotations"] if item["ignore"]}
        super()._prepare()  # overwrites them
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = int(item["id"] in ignored)


def match(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    with_labels: bool = True,
    only_totals: bool = False,
) -> BoxEvaluation:
    """Match detections with ground truth by pycocotools.

    Args:
        ground_truth: from :func:`coco_ground_truth`.
        results: from :func:`coco_results`.
        with_labels: a detection matches only an object of its label; otherwise any.
        only_totals: boxes of every size together and 100 detections an image, for AP, AP50, AP75 and AR_100.

    Returns:
        The evaluation, matched and not yet accumulated; the id of a detection is its place in ``results``,
        counted from 1.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO()
        # Its annotations are written to while they are prepared.
        truth.dataset = {**ground_truth, "annotations": [dict(item) for item in ground_truth["annotations"]]}
        truth.createIndex()
        evaluation = BoxEvaluation(truth, _found(truth, results), "bbox")
        params = evaluation.params
        params.useCats = int(with_labels)
        if only_totals:
            params.areaRng, params.areaRngLbl, params.maxDets = params.areaRng[:1], ["all"], [100]
        evaluation.evaluate()
    return evaluation


def _found(truth: COCO, results: Sequence[dict[str, Any]]) -> COCO:
    """The detections, in the library's own form; its ``loadRes`` cannot take none."""
    if results:
        return truth.loadRes([dict(result) for result in results])
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def summarise(evaluation: BoxEvaluation) -> dict[str, float]:
    """COCO's twelve metrics of matched detections; -1 where there is nothing to measure."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}


def coco_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's twelve box metrics.

    Args:
        ground_truth: from :func:`coco_ground_truth`.
        results: from :func:`coco_results`.

    Returns:
        Metrics by name, see :data:`METRICS`; -1 where there is nothing to measure, as in COCO.
    """
    return summarise(match(ground_truth, results))
