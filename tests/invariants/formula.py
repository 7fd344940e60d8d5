"""The loss computed a second time, in float64 with numpy and scipy, without :mod:`qwendet.model.losses`.

    lm, teacher, student   means of -log p over the answers' tokens
    detection              class_w·class + l1_w·l1 + giou_w·giou, boxes matched stage by stage
    total                  the weighted sum

Formulas: docs/losses.md and docs/head.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from qwendet.config.schema import LossConfig

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

HEAD_TERMS = ("class", "l1", "giou")
"""Terms of the head, in the order of :func:`_stage_sums`; ``loss.NAME_weight`` weighs each."""
BOX_TERMS = HEAD_TERMS[1:]
"""Those of matched boxes: 0 without boxes."""
ALPHA, GAMMA, TINY = 0.25, 2, 1e-8
"""Of the focal matching cost (Deformable DETR's code)."""


@dataclass(frozen=True)
class Predictions:
    """One sample's predictions of one stage.

    Attributes:
        logits: ``(N, C)``.
        boxes_cxcywh: ``(N, 4)`` in the unit square.
    """

    logits: FloatArray
    boxes_cxcywh: FloatArray


@dataclass(frozen=True)
class Truth:
    """One sample's boxes.

    Attributes:
        boxes_cxcywh: ``(M, 4)`` in the unit square.
        label_ids: ``(M,)``.
    """

    boxes_cxcywh: FloatArray
    label_ids: IntArray


def text_terms(nll: FloatArray, is_student: npt.NDArray[np.bool_]) -> dict[str, float]:
    """``lm``, ``teacher`` and ``student`` of all tokens of a step."""
    sets = {"lm": nll, "teacher": nll[~is_student], "student": nll[is_student]}
    return {name: float(values.sum()) / max(1, len(values)) for name, values in sets.items()}


def detection_terms(
    stages: Sequence[Sequence[Predictions]], truths: Sequence[Truth], weights: LossConfig, one_to_many: int
) -> dict[str, float]:
    """:data:`HEAD_TERMS` and their weighted sum, of all samples of a step.

    Args:
        stages: for each sample its stages, the dense one first.
        truths: boxes of each sample.
        weights: weights of the terms, which are also those of the matching cost.
        one_to_many: predictions of the dense stage that answer for one box.
    """
    sums = np.zeros(len(HEAD_TERMS))
    for own, truth in zip(stages, truths, strict=True):
        for number, stage in enumerate(own):
            repeat = one_to_many if number == 0 else 1
            sums += _stage_sums(stage, truth, weights, repeat) / repeat
    sums /= max(1, sum(len(truth.label_ids) for truth in truths))
    terms = dict(zip(HEAD_TERMS, sums.tolist(), strict=True))
    weighted = [getattr(weights, f"{name}_weight") * value for name, value in terms.items()]
    return terms | {"detection": sum(weighted)}


def weighted_sum(terms: dict[str, float], weights: LossConfig) -> float:
    """The total."""
    own = {"lm": weights.lm_loss_weight, "teacher": weights.teacher_loss_weight}
    own |= {"student": weights.student_loss_weight, "detection": weights.detection_loss_weight}
    return sum(weight * terms.get(name, 0.0) for name, weight in own.items())


def _stage_sums(stage: Predictions, truth: Truth, weights: LossConfig, repeat: int) -> FloatArray:
    """Sums of the losses of one stage of one sample, as :data:`HEAD_TERMS`."""
    rows, boxes = _assign(stage, truth, weights, repeat)
    found, wanted = stage.boxes_cxcywh[rows], truth.boxes_cxcywh[boxes]
    iou, giou = _iou_and_giou(found, wanted)
    quality = np.zeros_like(stage.logits)
    quality[rows, truth.label_ids[boxes]] = iou
    probability = _sigmoid(stage.logits)
    entropy = np.logaddexp(0, stage.logits) - quality * stage.logits
    focal = (np.abs(probability - quality) ** 2 * entropy).sum()
    return np.array([focal, np.abs(found - wanted).sum(), (1 - giou).sum()])


def _assign(stage: Predictions, truth: Truth, weights: LossConfig, repeat: int) -> tuple[IntArray, IntArray]:
    """Predictions and the boxes that they answer for, at the lowest total cost."""
    count = len(truth.label_ids)
    if count == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    probability = _sigmoid(stage.logits)[:, truth.label_ids]
    positive = ALPHA * (1 - probability) ** GAMMA * -np.log(probability + TINY)
    negative = (1 - ALPHA) * probability**GAMMA * -np.log(1 - probability + TINY)
    found, wanted = stage.boxes_cxcywh[:, None], truth.boxes_cxcywh[None]
    l1 = np.abs(found - wanted).sum(-1)
    _, giou = _iou_and_giou(found, wanted)
    cost = weights.class_weight * (positive - negative) + weights.l1_weight * l1 - weights.giou_weight * giou
    rows, columns = linear_sum_assignment(np.tile(cost, (1, repeat)))
    return rows.astype(np.int64), (columns % count).astype(np.int64)


def _iou_and_giou(ours: FloatArray, theirs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """IoU and GIoU (Rezatofighi et al. 2019, algorithm 1) of ``(..., 4)`` cxcywh boxes that broadcast."""
    low = [box[..., :2] - box[..., 2:] / 2 for box in (ours, theirs)]
    high = [box[..., :2] + box[..., 2:] / 2 for box in (ours, theirs)]
    shared = (np.minimum(*high) - np.maximum(*low)).clip(min=0).prod(-1)
    union = ours[..., 2:].prod(-1) + theirs[..., 2:].prod(-1) - shared
    hull = (np.maximum(*high) - np.minimum(*low)).prod(-1)
    iou = shared / union
    return iou, iou - (hull - union) / hull


def _sigmoid(logits: FloatArray) -> FloatArray:
    return np.exp(-np.logaddexp(0, -logits))
