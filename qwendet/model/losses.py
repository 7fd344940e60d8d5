"""The loss: one vector of token losses under three weightings, and the head's loss.

    lm        = mean over teacher and student tokens       student = mean over student tokens
    teacher   = mean over teacher tokens                   detection = class_w·class + l1_w·l1 + giou_w·giou
    total     = lm_w·lm + teacher_w·teacher + student_w·student + detection_w·detection

Every mean is over the whole optimizer step: sums are divided by :class:`StepCounts`, gathered over
all micro-batches and ranks, so 1 × 4 and 4 × 1 samples give the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qwendet.boxes import cxcywh_to_xyxy, paired_iou_and_giou
from qwendet.config.schema import LossConfig
from qwendet.encoding.collate import Batch
from qwendet.model.head import HeadOutput
from qwendet.model.matching import Matches, Targets, match
from qwendet.model.precision import float32_or_wider

LOSS_VERSION = 1
TERMS = ("lm", "teacher", "student", "detection", "class", "l1", "giou")


@dataclass(frozen=True)
class TokenLosses:
    """Loss of every supervised token of a batch.

    Attributes:
        nll: ``(R,)`` float32, negative log-likelihood of each label token, without gradient.
        is_student: ``(R,)`` bool, False for the demonstrations' tokens.
        teacher_sum: sum of the demonstrations' nll, a scalar on the graph.
        student_sum: sum of the student answers' nll, a scalar on the graph.
    """

    nll: Tensor
    is_student: Tensor
    teacher_sum: Tensor
    student_sum: Tensor


@dataclass(frozen=True)
class Losses:
    """What is back-propagated, and its parts, all scalars on the graph.

    Attributes:
        terms: unweighted terms by name, see :data:`TERMS`.
    """

    total: Tensor
    terms: dict[str, Tensor]


def step_counts(batches: Iterable[Batch]) -> Tensor:
    """Teacher tokens, student tokens and boxes of a step's micro-batches on this rank: ``(3,)`` float64.

    The means of the step divide by them; ranks are added up by the caller.
    """
    counts = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        counts += torch.tensor(
            [len(batch["teacher_rows"]), len(batch["student_rows"]), sum(batch["num_boxes"])]
        )
    return counts


class LossManager:
    """Computes the loss of a micro-batch as its share of the optimizer step's.

    On the dense stage each box is matched ``one_to_many`` times.
    """

    def __init__(self, weights: LossConfig, one_to_many: int) -> None:
        self.weights = weights
        self.one_to_many = one_to_many

    def __call__(
        self, tokens: TokenLosses, head: HeadOutput | None, targets: Targets | None, counts: Tensor
    ) -> Losses:
        """Add up the terms; ``counts`` are those of :func:`step_counts` over the whole step.

        Returns:
            Losses whose sum over the step's micro-batches is the step's loss. An empty set gives a 0
            that still has a gradient.
        """
        teacher_count, student_count, box_count = counts.to(tokens.nll).unbind()
        teacher_sum, student_sum = tokens.teacher_sum, tokens.student_sum
        terms = {
            "lm": (teacher_sum + student_sum) / (teacher_count + student_count).clamp(min=1),
            "teacher": teacher_sum / teacher_count.clamp(min=1),
            "student": student_sum / student_count.clamp(min=1),
        }
        if head is not None and targets is not None:
            terms |= self._detection(head, targets, box_count.clamp(min=1))
        return Losses(self._total(terms), terms)

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        weights = self.weights
        total = (
            weights.lm_loss_weight * terms["lm"]
            + weights.teacher_loss_weight * terms["teacher"]
            + weights.student_loss_weight * terms["student"]
        )
        if "detection" in terms:
            total = total + weights.detection_loss_weight * terms["detection"]
        return total

    def _detection(self, head: HeadOutput, targets: Targets, num_boxes: Tensor) -> dict[str, Tensor]:
        repeats = (self.one_to_many, *[1] * (len(head.stage_sizes) - 1))
        matches = match(head, targets, self.weights, repeats)
        stages = zip(head.stage_sizes, repeats, strict=True)
        of_predictions = torch.cat([torch.full((size,), 1 / repeat) for size, repeat in stages])
        scale = of_predictions.to(head.logits.device) / num_boxes
        terms = detection_terms(head, targets, matches, scale)
        weights = self.weights
        terms["detection"] = (
            weights.class_weight * terms["class"]
            + weights.l1_weight * terms["l1"]
            + weights.giou_weight * terms["giou"]
        )
        return terms


def detection_terms(head: HeadOutput, targets: Targets, matches: Matches, scale: Tensor) -> dict[str, Tensor]:
    """Classification, L1 and GIoU loss, summed over all stages: scalars in float32 or float64.

    Classification is the quality focal loss (Li et al. 2020, eq. 6, beta 2): the matched class is to
    score the IoU of its box, everything else 0, so a score tells how well the box fits. ``scale`` ``(K,)``
    is the weight of a prediction, one over the number of boxes included.
    """
    logits, boxes = (part.to(float32_or_wider(part.dtype)) for part in (head.logits, head.boxes_cxcywh))
    predicted = boxes[matches.sample, matches.prediction]
    wanted = targets.boxes_cxcywh.to(boxes)[matches.target]
    iou, giou = paired_iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
    quality = torch.zeros_like(logits)
    quality[matches.sample, matches.prediction, targets.label_ids[matches.target]] = iou.detach()
    modulation = (logits.sigmoid() - quality).abs() ** 2
    focal = modulation * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    pair_scale = scale[matches.prediction]
    return {
        "class": (focal.sum(-1) * head.valid * scale).sum(),
        "l1": ((predicted - wanted).abs().sum(-1) * pair_scale).sum(),
        "giou": ((1 - giou) * pair_scale).sum(),
    }
