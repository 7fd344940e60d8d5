"""Bugs that ``consistency.head.*`` is for: what the head sees, and what is read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from qwendet.encoding.collate import Batch
from qwendet.encoding.encode import Encoder
from qwendet.model import head as head_module
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import Classifier, HeadOutput, LabelEncoder
from qwendet.model.vision_tower import plan
from tests.planted.bug import Bug
from tests.planted.in_code import in_head_inputs, replacing


def answer_leak(patches: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return patches, hidden + 0.01 * hidden[:, -1:]


def batch_leak(patches: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return patches + 0.01 * patches.mean(0), hidden


def first_image(patches: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Take the patches from the start of the batch's images: a teacher's, where there is one."""
    return patches.roll(int(batch["image_grid_thw"][-1].prod()), dims=0), hidden


def window_order(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection.encode_images

    def encode_images(self: Qwen25VLWithDetection, pixel_values: Tensor, grids: Tensor) -> Any:
        patches, embeds = sound(self, pixel_values, grids)
        found = plan(self.vlm.model.visual, grids, pixel_values.device)
        order = found.get("window_index", torch.arange(len(patches) // 4).flip(0))
        return patches.unflatten(0, (len(order), -1))[order].flatten(0, 1), embeds

    monkeypatch.setattr(Qwen25VLWithDetection, "encode_images", encode_images)


def sigmoid_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = HeadOutput.final

    def final(self: HeadOutput) -> Any:
        logits, boxes, valid = sound(self)
        return logits.sigmoid(), boxes, valid

    monkeypatch.setattr(HeadOutput, "final", final)


def reversed_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Encoder.label_tokens

    def label_tokens(self: Encoder, labels: Sequence[str]) -> dict[str, Sequence[int]]:
        return dict(zip(labels, reversed(sound(self, labels).values()), strict=True))

    monkeypatch.setattr(Encoder, "label_tokens", label_tokens)


def mean_over_padding(self: LabelEncoder, embeds: Tensor, mask: Tensor) -> Tensor:
    return self.out(self.token(self.norm(embeds)).mean(1))


def swapped_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = head_module.cell_boxes
    monkeypatch.setattr(head_module, "cell_boxes", lambda mask: sound(mask)[..., [1, 0, 3, 2]])


def all_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Classifier.forward

    def forward(self: Classifier, features: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
        return sound(self, features, labels, torch.ones_like(asked))

    monkeypatch.setattr(Classifier, "forward", forward)


HEAD_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug("answer leaks into the head", "test.head.answer", ("answer",), in_head_inputs(answer_leak)),
    Bug("batch leaks into the head", "test.head.mates", ("alone",), in_head_inputs(batch_leak)),
    Bug(
        "a teacher's image for the student's",
        "test.head.order",
        ("patches",),
        in_head_inputs(first_image),
    ),
    Bug("patches in window order", "test.head.order", ("patches", "turned.jpg"), window_order),
    Bug("rows and columns of proposals swapped", "test.head.cells", ("centres",), swapped_cells),
    Bug("the mask of labels left out", "test.head.asked", ("were not asked",), all_are_asked),
    Bug("labels reordered", "test.head.labels", ("the head's classes are",), reversed_labels),
    Bug(
        "padding of labels counts",
        "test.head.labels",
        ("labels reversed and padded",),
        replacing(LabelEncoder, "forward", mean_over_padding),
    ),
    Bug("sigmoid twice", "test.head.scores", ("its logit says",), sigmoid_twice),
]
