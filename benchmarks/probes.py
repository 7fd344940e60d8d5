"""Auxiliary losses that teach the tiny model's language model where things are; used in pre-training only.

Left to the answers alone, it takes far more than 70,000 samples to find out where an image token lies: the
vision tower knows relative positions only, so rows and columns can be told from nothing but M-RoPE's turn
against the text before the image. Linear probes on the hidden states ask for it directly:

    tower     patches         label of the object that covers them, and how far its edges are away
    layer 0   image tokens    their row and column
    layer 1   image tokens    box (as answers write it) and label of the object that covers them
    layer 2   image tokens    the same;    answer tokens    box and label of the object that is being written
    layer 3                                answer tokens    the same

The idea is the deep supervision of Lee et al. 2015 (Deeply-Supervised Nets). The probes are thrown away.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwendet.boxes import cxcywh_to_xyxy
from qwendet.config.schema import Frame
from qwendet.encoding.collate import Batch
from qwendet.families.family import Family
from qwendet.loader import Bundle

MAX_ROWS = 8  # of image tokens; their columns likewise
DIGITS = (10, 10, 10)  # classes of a coordinate's hundreds, tens and ones
ONES_WEIGHT = {"pixels": 0.5, "thousandths": 0.1}  # the last digit is mostly noise
REGRESSION_WEIGHT = 5.0
REGRESSION_UNIT = {"pixels": 112.0, "thousandths": 1000.0}
PATCH_WEIGHT = 5.0
NOTHING = -1.0  # in all of a target: no object there


class PositionProbe(nn.Module):
    """Reads row and column of an image token."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2 * MAX_ROWS))

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Cross-entropy for hidden states ``(N, size)`` and rows and columns ``(N, 2)``."""
        logits = self.read(hidden).unflatten(1, (2, MAX_ROWS))
        return 2 * F.cross_entropy(logits.flatten(0, 1), positions.flatten())


class ObjectProbe(nn.Module):
    """Reads the four coordinates of a box, as digits and as numbers, and the label."""

    def __init__(self, size: int, num_labels: int, frame: Frame) -> None:
        super().__init__()
        self.frame = frame
        self.norm = nn.LayerNorm(size)
        self.box = nn.Linear(size, 4 * (sum(DIGITS) + 1))
        self.label = nn.Linear(size, num_labels)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Loss for hidden states ``(N, size)``; rows of ``NOTHING`` are left out.

        Args:
            hidden: hidden states.
            targets: ``(N, 5)``, xyxy in the frame of answers, and the label's index.
        """
        known = targets[:, 0] != NOTHING
        boxes, labels = targets[known, :4], targets[known, 4].long()
        if len(boxes) == 0:
            return hidden.sum() * 0
        normed = self.norm(hidden[known])
        *digits, number = self.box(normed).unflatten(1, (4, -1)).split((*DIGITS, 1), dim=-1)
        whole = boxes.round().long().clamp(0, 999)
        wanted = (whole // 100, whole // 10 % 10, whole % 10)
        losses = [
            F.cross_entropy(logits.flatten(0, 1), digit.flatten())
            for logits, digit in zip(digits, wanted, strict=True)
        ]
        regression = F.l1_loss(number.squeeze(-1), boxes / REGRESSION_UNIT[self.frame])
        label: Tensor = F.cross_entropy(self.label(normed), labels)
        ones = ONES_WEIGHT[self.frame] * losses[2]
        return losses[0] + losses[1] + ones + REGRESSION_WEIGHT * regression + label


class PatchProbe(nn.Module):
    """Reads what covers a patch of the vision tower: a label or nothing, and how far its edges are away.

    It is there where a head is, which learns from few patches of an image alone.
    """

    def __init__(self, size: int, num_labels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.edges = nn.Linear(size, 4)
        self.label = nn.Linear(size, num_labels + 1)

    def forward(self, hidden: Tensor, centres: Tensor, covering: Tensor) -> Tensor:
        """Loss for hidden states ``(N, size)``.

        Args:
            hidden: hidden states.
            centres: ``(N, 2)``, x and y of each patch, in patches.
            covering: ``(N, 5)`` from :func:`_covering`, in patches.
        """
        normed, known = self.norm(hidden), covering[:, 0] != NOTHING
        labels = torch.where(known, covering[:, 4] + 1, 0.0).long()
        wanted = (covering[:, :4] - centres.repeat(1, 2))[known]
        loss: Tensor = F.cross_entropy(self.label(normed), labels)
        if known.any():
            loss = loss + F.smooth_l1_loss(self.edges(normed)[known], wanted)
        return PATCH_WEIGHT * loss


class Probes(nn.Module):
    """All probes, listening to the language model of a bundle.

    Args:
        bundle: the model and its tokenizer.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        layers: Any = bundle.detector.vlm.model.language_model.layers
        size, num_labels = bundle.detector.config.text_config.hidden_size, len(bundle.labels)
        self.family = bundle.processor.family

        def probe() -> ObjectProbe:
            return ObjectProbe(size, num_labels, self.family.frame)

        self.labels = bundle.labels
        self.tokenizer = bundle.processor.tokenizer
        self.position = PositionProbe(size)
        self.seen = nn.ModuleDict({"1": probe(), "2": probe()})
        self.written = nn.ModuleDict({"2": probe(), "3": probe()})
        self._hidden: dict[int, Tensor] = {}
        self.patch: PatchProbe | None = None
        if (head := bundle.detector.head) is not None:
            self.patch = PatchProbe(head.shape.vision_size, num_labels)
            head.memory.register_forward_pre_hook(self._keep_patches)
        vocabulary = range(len(self.tokenizer))
        self._opened = torch.tensor([self.tokenizer.decode([token]).count("{") for token in vocabulary])
        for index, layer in enumerate(layers):
            layer.register_forward_hook(self._listen(index))

    def _listen(self, index: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._hidden[index] = output[0] if isinstance(output, tuple) else output

        return keep

    def _keep_patches(self, module: nn.Module, inputs: Any) -> None:
        self._patches: Tensor = inputs[0]

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the probes' losses for the batch that the model has just seen."""
        tokens, positions, covering = image_targets(batch, self.family)
        writing = self._written_objects(batch)
        flat = {index: hidden.float().flatten(0, 1) for index, hidden in self._hidden.items()}
        loss: Tensor = self.position(flat[0][tokens], positions)
        for index, probe in self.seen.items():
            loss = loss + probe(flat[int(index)][tokens], covering)
        for index, probe in self.written.items():
            loss = loss + probe(flat[int(index)], writing)
        if self.patch is not None:
            mask = batch["patch_mask"]
            centres = mask.nonzero()[:, [2, 1]] + 0.5
            loss = loss + self.patch(self._patches.float()[mask], centres, torch.cat(_covering(batch, mask)))
        return loss

    def _written_objects(self, batch: Batch) -> Tensor:
        """For each token of the batch ``(B * L, 5)`` the object that it helps to write."""
        input_ids: Tensor = batch["input_ids"]
        targets = torch.full((input_ids.numel(), 5), NOTHING)
        tokens = batch["student_rows"] + 1  # of one sample after the other, whose answer is one span
        answers = tokens.tensor_split((tokens.diff() > 1).nonzero()[:, 0] + 1)
        for at in answers if len(tokens) else ():
            answer = input_ids.flatten()[at]
            objects = json.loads(self.tokenizer.decode(answer[:-1]))
            if objects:
                own = torch.tensor([[*item["bbox_2d"], self.labels.index(item["label"])] for item in objects])
                number = self._opened[answer].cumsum(0)  # 0 before the first object
                targets[at] = torch.where(number[:, None] > 0, own[number - 1].float(), NOTHING)
        return targets


def image_targets(batch: Batch, family: Family) -> tuple[Tensor, Tensor, Tensor]:
    """What the image tokens of a batch lie on.

    Returns:
        For the N tokens of all student images: their indices in the flattened batch ``(N,)``; row and
        column ``(N, 2)``; and as ``(N, 5)`` xyxy box (in the frame of answers) and label index of the
        nearest object among those that cover a token's centre or have their own centre in the token, else
        ``NOTHING``.
    """
    mask: Tensor = batch["patch_mask"][:, ::2, ::2]
    tokens: Tensor = batch["context_index"][:, ::2, ::2]
    unit, covering = family.limits.unit, []
    for own, found in zip(mask, _covering(batch, mask), strict=True):
        columns, rows = _size(own)
        width, height = family.answer_size((unit * columns, unit * rows))
        in_frame = found * torch.tensor([width / columns, height / rows] * 2 + [1])
        covering.append(torch.where(found == NOTHING, NOTHING, in_frame))
    return tokens[mask], mask.nonzero()[:, 1:], torch.cat(covering)


def _size(own: Tensor) -> tuple[int, int]:
    """Columns and rows of one image's mask."""
    return int(own.any(0).sum()), int(own.any(1).sum())


def _covering(batch: Batch, mask: Tensor) -> list[Tensor]:
    """Of each image the objects ``(N, 5)`` that cover its cells of ``(B, H, W)``: xyxy in cells, label."""
    boxes = cxcywh_to_xyxy(batch["target_boxes_cxcywh"])
    objects = torch.cat([boxes, batch["target_label_ids"][:, None].float()], dim=1)
    found = []
    for own, inside in zip(mask, objects.split(batch["num_boxes"]), strict=True):
        columns, rows = _size(own)
        found.append(_nearest(own.nonzero(), inside * torch.tensor([columns, rows, columns, rows, 1])))
    return found


def _nearest(cells: Tensor, objects: Tensor) -> Tensor:
    """The object ``(N, 5)`` of each cell (row, column) ``(N, 2)``, out of ``(K, 5)``; lengths in cells."""
    if len(objects) == 0:
        return torch.full((len(cells), 5), NOTHING)
    low, high = objects[:, :2], objects[:, 2:4]
    centres = (cells.flip(1) + 0.5)[:, None]
    covers = ((low < centres) & (centres < high)).all(-1)
    offsets = (low + high) / 2 - centres
    holds = (offsets.abs() <= 0.5).all(-1)
    # An object whose centre is in the token comes before one that merely covers it.
    distance = offsets.norm(dim=-1) - 1000.0 * holds
    nearest = distance.masked_fill(~(covers | holds), torch.inf).min(1)
    return torch.where(nearest.values.isfinite()[:, None], objects[nearest.indices], NOTHING)
