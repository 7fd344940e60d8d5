"""COCO ground truth, COCO results and COCO metrics (by pycocotools) of predictions.

Of federated annotations the ground truth is LVIS's, and so are the rules (Gupta et al. 2019): detections of a
label that an image was not annotated for do not count, nor do those that match nothing of a label that is
not annotated exhaustively; 300 detections an image count. Where each sample asks for one expression, as those
of RefCOCO do, all expressions are one category.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qwendet.data.samples import FREQUENCIES, Sample
from qwendet.inference.detections import Prediction, Source

MOST_DETECTIONS = (1, 10, 100)
"""Of an image and a label, in average recalls; AP takes the last."""
MOST_OF_FEDERATED = 300
"""Detections of an image that count where annotations are federated."""


def coco_ground_truth(
    samples: Sequence[Sample], predictions: Sequence[Prediction], labels: Sequence[str]
) -> dict[str, Any]:
    """Ground truth in COCO's form: image ids count from 0, category ids from 1, boxes xywh.

    Crowds and difficult objects are not scored: a crowd takes in any number of detections that lie in it, a
    difficult object the one that fits it. Labels outside the set become categories after it; what nobody asks
    for is missed.
    """
    category_of = _categories(samples, labels)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (sample, prediction) in enumerate(zip(samples, predictions, strict=True)):
        turn = sample.student
        image = {"id": image_id, "file_name": turn.image}
        image |= {"width": prediction.width, "height": prediction.height}
        if turn.neg_labels is not None:
            for name, given in (("neg", turn.neg_labels), ("not_exhaustive", turn.not_exhaustive_labels)):
                image[f"{name}_category_ids"] = [
                    category_of[label] for label in given if label in category_of
                ]
        images.append(image)
        for item in turn.objects:
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
    if are_expressions(samples):
        for image, sample in zip(images, samples, strict=True):
            image["expression"] = ", ".join(sample.student.labels or ())
        return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "expression"}]}
    frequency = {item.desc: item.frequency for sample in samples for item in sample.student.objects}
    categories = [
        {"id": category, "name": label} | ({"frequency": frequency[label]} if frequency.get(label) else {})
        for label, category in category_of.items()
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def are_expressions(samples: Sequence[Sample]) -> bool:
    """Whether each sample asks for one expression, and has the one object that it refers to."""
    turns = [sample.student for sample in samples]
    return all(len(turn.labels or ()) == len(turn.objects) == 1 for turn in turns)


def _is_federated(ground_truth: Mapping[str, Any]) -> bool:
    return any("neg_category_ids" in image for image in ground_truth["images"])


def _categories(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, int]:
    """Category ids from 1: of the label set, then of what else is asked in samples or is there."""
    turns = [sample.student for sample in samples]
    if are_expressions(samples):
        return {label: 1 for turn in turns for label in turn.labels or ()}
    others = {label for turn in turns for label in (turn.labels or [item.desc for item in turn.objects])}
    return {
        label: index for index, label in enumerate([*labels, *sorted(others.difference(labels))], start=1)
    }


def coco_results(
    samples: Sequence[Sample], predictions: Sequence[Prediction], labels: Sequence[str], source: Source
) -> list[dict[str, Any]]:
    """Detections of one source in COCO's results form, of labels that samples ask for, else of the set."""
    category_of, default = _categories(samples, labels), frozenset(labels)
    is_federated = any(sample.student.neg_labels is not None for sample in samples)
    return [
        {
            "image_id": image_id,
            "category_id": category_of[detection.desc],
            "bbox": list(xywh(detection.bbox_2d)),
            "score": detection.score,
        }
        for image_id, (sample, prediction) in enumerate(zip(samples, predictions, strict=True))
        for detection in [
            detection
            for detection in prediction.detections
            if detection.source == source and detection.desc in (sample.student.labels or default)
        ][: MOST_OF_FEDERATED if is_federated else None]
    ]


def xywh(box_xyxy: Sequence[float]) -> tuple[float, float, float, float]:
    """Corner, width and height of an xyxy box."""
    x1, y1, x2, y2 = box_xyxy
    return x1, y1, x2 - x1, y2 - y1


class BoxEvaluation(COCOeval):  # type: ignore[misc]
    """pycocotools' evaluation, which takes ``ignore`` as it is given; its own lets only crowds be ignored.

    It knows LVIS's rules, too, and looks only at images that have something of a label.
    """

    def evaluate(self) -> None:
        """Match: pycocotools' results, without a record of each of LVIS's 24 million images and labels."""
        params = self.params
        self._prepare()
        labels = params.catIds if params.useCats else [-1]
        known = self._gts.keys() | self._dts.keys()
        pairs = known if params.useCats else {(image, -1) for image, _ in known}
        self.ious = {pair: self.computeIoU(*pair) for pair in pairs}
        self.evalImgs = [
            self.evaluateImg(image, label, area, params.maxDets[-1]) if (image, label) in pairs else None
            for label in labels
            for area in params.areaRng
            for image in params.imgIds
        ]
        self._paramsEval = params

    def _prepare(self) -> None:
        ignored = {item["id"] for item in self.cocoGt.dataset["annotations"] if item["ignore"]}
        super()._prepare()  # overwrites them
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = int(item["id"] in ignored)
        for image, category in list(self._dts):
            absent = self.cocoGt.imgs[image].get("neg_category_ids")
            if absent is not None and category not in absent and (image, category) not in self._gts:
                del self._dts[image, category]

    def evaluateImg(self, image: int, category: int, area: Any, most: int) -> dict[str, Any] | None:  # noqa: N802
        """Match an image's detections of a label; pycocotools' name of it."""
        record: dict[str, Any] | None = super().evaluateImg(image, category, area, most)
        open_labels = self.cocoGt.imgs[image].get("not_exhaustive_category_ids")
        if record is not None and open_labels:
            labels = [self.cocoDt.anns[found]["category_id"] for found in record["dtIds"]]
            record["dtIgnore"] |= (record["dtMatches"] == 0) & np.isin(labels, open_labels)
        return record


def match(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    with_labels: bool = True,
    only_totals: bool = False,
) -> BoxEvaluation:
    """Match detections with ground truth by pycocotools; what is returned is not yet accumulated.

    The id of a detection is its place in ``results``, counted from 1. Without ``with_labels`` it matches an
    object of any label; ``only_totals`` takes boxes of every size together, for AP, AP50, AP75 and AR_100.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO()
        # Its annotations are written to while they are prepared.
        truth.dataset = {**ground_truth, "annotations": [dict(item) for item in ground_truth["annotations"]]}
        truth.createIndex()
        evaluation = BoxEvaluation(truth, _found(truth, results), "bbox")
        params = evaluation.params
        params.useCats = int(with_labels)
        params.maxDets = [*MOST_DETECTIONS, *[MOST_OF_FEDERATED] * _is_federated(ground_truth)]
        if only_totals:
            params.areaRng, params.areaRngLbl = params.areaRng[:1], ["all"]
            params.maxDets = params.maxDets[2:]
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
    """COCO's twelve metrics of matched detections; -1 where there is nothing to measure.

    Of federated annotations also AR_300, and AP_r, AP_c, AP_f of rare, common and frequent labels.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    sizes, most = list(enumerate(evaluation.params.areaRngLbl))[1:], evaluation.params.maxDets
    found = {"AP": precision[..., 0, -1], "AP50": precision[0, ..., 0, -1], "AP75": precision[5, ..., 0, -1]}
    found |= {f"AP_{size}": precision[..., area, -1] for area, size in sizes}
    found |= {f"AR_{number}": recall[..., 0, place] for place, number in enumerate(most)}
    found |= {f"AR_{size}": recall[..., area, -1] for area, size in sizes}
    if len(most) > len(MOST_DETECTIONS):
        of_category = [category.get("frequency") for category in evaluation.cocoGt.dataset["categories"]]
        for frequency in FREQUENCIES:
            found[f"AP_{frequency}"] = precision[:, :, [item == frequency for item in of_category], 0, -1]
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Over labels that have objects."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def coco_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's twelve box metrics by name, and LVIS's; -1 where there is nothing to measure."""
    return summarise(match(ground_truth, results))
