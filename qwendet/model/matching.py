"""Hungarian matching of predictions and ground truth, for all stages of a batch at once.

The cost of every prediction of every stage against every box is one batched computation and one
transfer to the CPU; only the assignment itself (scipy) loops over samples and stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qwendet.boxes import cxcywh_to_xyxy, paired_iou_and_giou
from qwendet.config.schema import LossConfig
from qwendet.model.head import HeadOutput


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch.

    Attributes:
        boxes_cxcywh: ``(N, 4)`` in the unit square, samples one after another.
        label_ids: ``(N,)`` int64.
    """

    boxes_cxcywh: Tensor
    label_ids: Tensor
    num_boxes: Sequence[int]


@dataclass(frozen=True)
class Matches:
    """Which prediction answers for which box.

    Attributes:
        sample: ``(M,)`` int64, index in the batch.
        prediction: ``(M,)`` int64, index along K of :class:`HeadOutput`.
        target: ``(M,)`` int64, index into :class:`Targets`.
    """

    sample: Tensor
    prediction: Tensor
    target: Tensor


def match(output: HeadOutput, targets: Targets, weights: LossConfig, repeats: Sequence[int]) -> Matches:
    """Assign every box to predictions, at the lowest total cost in each stage of each sample.

    A stage with fewer predictions than wanted leaves the costliest boxes out. ``repeats`` says for each stage
    how many predictions answer for one box; more than one is the one-to-many branch of H-DETR (Jia et al.
    2023, §3.2).
    """
    with torch.no_grad():
        cost = matching_cost(output, targets, weights).cpu().numpy()
    valid = output.valid.cpu().numpy()
    starts = np.concatenate([[0], np.cumsum(output.stage_sizes)])
    first_target = np.concatenate([[0], np.cumsum(targets.num_boxes)]).astype(np.int64)
    found: list[npt.NDArray[np.int64]] = []
    for sample, count in enumerate(targets.num_boxes):
        if count == 0:
            continue
        for start, end, repeat in zip(starts[:-1], starts[1:], repeats, strict=True):
            own = start + np.flatnonzero(valid[sample, start:end])
            rows, columns = linear_sum_assignment(np.tile(cost[sample, own, :count], (1, repeat)))
            found.append(
                np.stack([np.full_like(rows, sample), own[rows], first_target[sample] + columns % count])
            )
    index = np.concatenate(found, axis=1) if found else np.zeros((3, 0), dtype=np.int64)
    sample_index, prediction, target = torch.from_numpy(index).to(output.logits.device)
    return Matches(sample_index, prediction, target)


def matching_cost(output: HeadOutput, targets: Targets, weights: LossConfig) -> Tensor:
    """Cost of every prediction against every box of its own sample, weighed as the loss terms are.

    Class cost is the focal cost of Deformable DETR (its code's ``HungarianMatcher``, alpha 0.25,
    gamma 2), box cost L1 and negative GIoU (Carion et al. 2020, eq. 2 and 4). A cost that is not
    finite becomes huge, so that the loss, not the matcher, reports it.

    Returns:
        ``(B, K, M)`` float32, M the most boxes of a sample; columns beyond a sample's own mean nothing.
    """
    boxes, labels = _pad(targets)
    probability = output.logits.float().sigmoid()
    probability = probability.gather(2, labels[:, None].expand(-1, probability.shape[1], -1))
    positive = 0.25 * (1 - probability) ** 2 * -(probability + 1e-8).log()
    negative = 0.75 * probability**2 * -(1 - probability + 1e-8).log()
    predicted, wanted = output.boxes_cxcywh.float(), boxes.float()
    l1 = torch.cdist(predicted, wanted, p=1)
    _, giou = paired_iou_and_giou(cxcywh_to_xyxy(predicted)[:, :, None], cxcywh_to_xyxy(wanted)[:, None])
    cost = weights.class_weight * (positive - negative) + weights.l1_weight * l1 - weights.giou_weight * giou
    return cost.nan_to_num(nan=1e6, posinf=1e6)


def _pad(targets: Targets) -> tuple[Tensor, Tensor]:
    """Boxes ``(B, M, 4)`` and labels ``(B, M)``, padded with zeros."""
    counts = list(targets.num_boxes)
    boxes, labels = (
        pad_sequence([*values.split(counts), values[:0]], batch_first=True)[:-1]  # of no sample, too
        for values in (targets.boxes_cxcywh, targets.label_ids)
    )
    return boxes, labels
