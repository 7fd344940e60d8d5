"""Which detection found which object, at IoU 0.5: what precision, recall and pictures of errors rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qwendet.boxes import paired_iou_and_giou
from qwendet.evaluation.coco import BoxEvaluation

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

IOU_THRESHOLD = 0.5
_THRESHOLD_INDEX = 0  # of 0.5 among pycocotools' thresholds
_ALL_SIZES = 0  # index of the area range that holds every box


@dataclass(frozen=True)
class Matches:
    """Detections and objects of one run; the ``N`` detections are sorted by score, best first.

    Attributes:
        detection: ``(N,)`` place of each in the results.
        score: ``(N,)``.
        category: ``(N,)`` COCO category of each.
        found: ``(N,)`` id of the annotation that it matches; 0 if none.
        ignored: ``(N,)`` it matches a crowd or a difficult object, so that it counts neither way.
        iou: ``(N,)`` with what it matches; NaN if nothing.
        truth: ids of the annotations that count.
        truth_category: COCO category of each of these.
    """

    detection: IntArray
    score: FloatArray
    category: IntArray
    found: IntArray
    ignored: BoolArray
    iou: FloatArray
    truth: IntArray
    truth_category: IntArray

    @property
    def is_true(self) -> BoolArray:
        """``(N,)`` whether each found an object that counts."""
        found: BoolArray = self.found > 0
        return found & ~self.ignored

    @property
    def is_false(self) -> BoolArray:
        """``(N,)`` whether each found nothing."""
        missed: BoolArray = self.found == 0
        return missed & ~self.ignored


def matches_of(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], done: BoxEvaluation
) -> Matches:
    """Read the matches that :func:`qwendet.evaluation.coco.match` made."""
    rows: list[tuple[int, float, int, bool]] = []
    for image in images_evaluated(done):
        for detection, score, found, ignored in zip(
            image["dtIds"],
            image["dtScores"],
            image["dtMatches"][_THRESHOLD_INDEX].astype(int),
            image["dtIgnore"][_THRESHOLD_INDEX].astype(bool),
            strict=True,
        ):
            rows.append((detection - 1, score, found, ignored))
    rows.sort(key=lambda row: -row[1])
    detection = np.array([row[0] for row in rows], dtype=np.int64)
    found = np.array([row[2] for row in rows], dtype=np.int64)
    return Matches(
        detection=detection,
        score=np.array([row[1] for row in rows], dtype=np.float64),
        category=np.array([results[index]["category_id"] for index in detection], dtype=np.int64),
        found=found,
        ignored=np.array([row[3] for row in rows], dtype=np.bool_),
        iou=_ious(ground_truth, results, detection, found),
        **_truth(ground_truth),
    )


def images_evaluated(done: BoxEvaluation) -> list[dict[str, Any]]:
    """Pycocotools' record of each label and image, over boxes of every size."""
    images, areas = len(done.params.imgIds), len(done.params.areaRng)
    groups = [done.evalImgs[start : start + images] for start in range(0, len(done.evalImgs), images)]
    return [record for group in groups[_ALL_SIZES::areas] for record in group if record is not None]


def f1_over_ious(done: BoxEvaluation, threshold: float | None) -> float | None:
    """F1@mIoU of LocateAnything's and Rex-Omni's tables, for labels with objects.

    Precision and recall are means over labels and over IoU 0.50, 0.55 … 0.95; F1 is theirs. Their code leaves
    precisions and recalls of 0 out of the means; here they count. Detections count from ``threshold`` on, all
    for ``None``; without an object there is nothing to return.
    """
    counts: dict[
        int, npt.NDArray[np.float64]
    ] = {}  # label: (2, T) right and wrong, and the number of objects
    objects: Counter[int] = Counter()
    for record in images_evaluated(done):
        label = record["category_id"]
        objects[label] += int((np.asarray(record["gtIgnore"]) == 0).sum())
        kept = np.asarray(record["dtScores"]) >= (-np.inf if threshold is None else threshold)
        counted = kept & ~record["dtIgnore"].astype(bool)
        matched = record["dtMatches"] > 0
        both = np.stack([(matched & counted).sum(1), (~matched & counted).sum(1)]).astype(float)
        counts[label] = counts.get(label, 0.0) + both
    known = [label for label, number in objects.items() if number]
    if not known:
        return None
    right, wrong = np.stack([counts[label] for label in known], 1)  # (K, T) each
    precision = float((right / np.maximum(right + wrong, 1)).mean())
    recall = float((right / np.array([[objects[label]] for label in known])).mean())
    return 2 * precision * recall / (precision + recall) if right.any() else 0.0


def accuracy(done: BoxEvaluation) -> float:
    """Share of the images whose best detection has IoU 0.5 with their object: RefCOCO's, by expression."""
    right = [record["dtMatches"][_THRESHOLD_INDEX, :1].any() for record in images_evaluated(done)]
    return sum(map(bool, right)) / len(done.params.imgIds)


def _truth(ground_truth: dict[str, Any]) -> dict[str, IntArray]:
    counted = [item for item in ground_truth["annotations"] if not item["ignore"]]
    return {
        "truth": np.array([item["id"] for item in counted], dtype=np.int64),
        "truth_category": np.array([item["category_id"] for item in counted], dtype=np.int64),
    }


def _ious(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], detection: IntArray, found: IntArray
) -> FloatArray:
    boxes = {item["id"]: item["bbox"] for item in ground_truth["annotations"]}
    iou = np.full(len(detection), np.nan)
    places = np.flatnonzero(found)
    pairs = [(results[detection[place]]["bbox"], boxes[found[place]]) for place in places]
    xywh = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2, 4)
    xyxy = torch.cat([xywh[..., :2], xywh[..., :2] + xywh[..., 2:]], dim=-1)
    iou[places] = paired_iou_and_giou(xyxy[:, 0], xyxy[:, 1])[0].numpy()
    return iou
