"""Bugs of the forward: shifted labels, masks and positions, parts cut off from the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwendet.encoding.collate import Batch
from qwendet.model import detector as detector_module
from qwendet.model.detector import DetectorOutput, Qwen25VLWithDetection
from qwendet.model.head import DetectionHead
from tests.planted.bug import Bug
from tests.planted.in_code import Plant, replacing


def cross_entropy(shift: int = 1, **settings: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """The detector's cross-entropy with another shift between states and labels, or other settings."""

    def compute(
        self: Qwen25VLWithDetection, hidden: Tensor, rows: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        states, labels = hidden.flatten(0, 1)[rows + 1 - shift], batch["labels"].flatten()[rows + 1]
        nll = F.cross_entropy(self.vlm.lm_head(states).float(), labels, reduction="none", **settings)
        return nll.sum(), nll.detach()

    return compute


def in_cross_entropy_half(plant_on: pytest.MonkeyPatch) -> None:
    sound = detector_module.linear_cross_entropy

    def compute(rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, nll = sound(rows.bfloat16(), weight.bfloat16(), labels)
        return total, nll

    plant_on.setattr(detector_module, "linear_cross_entropy", compute)


def gradient_of_a_mean(plant_on: pytest.MonkeyPatch) -> None:
    """The fused cross-entropy forgets that its gradients are kept divided by the number of rows."""
    sound = detector_module.linear_cross_entropy

    def compute(rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, nll = sound(rows, weight, labels)
        mean = total / max(1, len(rows))
        return mean + (total - mean).detach(), nll

    plant_on.setattr(detector_module, "linear_cross_entropy", compute)


def read(*, with_mask: bool, one_dimensional: bool) -> Callable[..., Tensor]:
    """The detector's pass through the language model without its mask or with positions of text."""

    def run(
        self: Qwen25VLWithDetection,
        batch: Batch,
        embeds: Tensor,
        images: Any,
        cache: None = None,
    ) -> Tensor:
        position_ids = batch["position_ids"]
        if one_dimensional:
            position_ids = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
        outputs = self.vlm.model(
            inputs_embeds=embeds,
            mm_encoder_outputs={"image": images},
            position_ids=position_ids,
            attention_mask=batch["attention_mask"] if with_mask else None,
            use_cache=False,
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    return run


def seeing(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Plant:
    """Change patches and image tokens behind the vision tower, its deepstack features too."""
    sound = Qwen25VLWithDetection.encode_images

    def encode_images(self: Qwen25VLWithDetection, pixel_values: Tensor, grids: Tensor) -> Any:
        patches, images = sound(self, pixel_values, grids)
        patches, tokens = change(patches, torch.cat(images.pooler_output))
        images.pooler_output = (tokens,)
        images.deepstack_features = [
            tuple(change(patches, feature)[1] for feature in layer)
            for layer in getattr(images, "deepstack_features", ())
        ]
        return patches, images

    return replacing(Qwen25VLWithDetection, "encode_images", encode_images)


def context_detached(plant_on: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection._detect
    plant_on.setattr(
        Qwen25VLWithDetection,
        "_detect",
        lambda self, patches, hidden, *inputs: sound(self, patches, hidden.detach(), *inputs),
    )


def head_never_called(plant_on: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection.forward

    def forward(self: Qwen25VLWithDetection, batch: Batch, *, with_tokens: bool = True) -> DetectorOutput:
        return replace(sound(self, batch, with_tokens=with_tokens), head=None)

    plant_on.setattr(Qwen25VLWithDetection, "forward", forward)


def layer_cut_off(plant_on: pytest.MonkeyPatch) -> None:
    """The head refines boxes without a gradient to its queries."""
    sound = DetectionHead.forward

    def forward(self: DetectionHead, patches: Tensor, context: Tensor, *rest: Tensor) -> Any:
        with_grad = self.query.weight.requires_grad
        self.query.weight.requires_grad_(False)
        self.query.bias.requires_grad_(False)
        try:
            return sound(self, patches, context, *rest)
        finally:
            self.query.weight.requires_grad_(with_grad)
            self.query.bias.requires_grad_(with_grad)

    plant_on.setattr(DetectionHead, "forward", forward)


MODEL_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "the head's predictions never reach the loss",
        "test.loss.detection",
        ("returns no predictions of a head",),
        head_never_called,
    ),
    Bug(
        "labels not shifted against the states",
        "loss.tokens",
        ("differ from the base model's",),
        replacing(Qwen25VLWithDetection, "_cross_entropy", cross_entropy(0)),
    ),
    Bug(
        "states and labels two apart",
        "loss.tokens",
        ("differ from the base model's",),
        replacing(Qwen25VLWithDetection, "_cross_entropy", cross_entropy(2)),
    ),
    Bug(
        "label smoothing left on",
        "loss.tokens",
        ("differ from the base model's",),
        replacing(Qwen25VLWithDetection, "_cross_entropy", cross_entropy(label_smoothing=0.01)),
    ),
    Bug(
        "half precision in the token losses",
        "loss.tokens",
        ("is the rounding of float32",),
        in_cross_entropy_half,
    ),
    Bug(
        "gradient of a mean under the value of a sum",
        "test.loss.backward",
        ("the gradient of the teacher tokens", "of its norm"),
        gradient_of_a_mean,
    ),
    Bug(
        "attention mask not given to the language model",
        "loss.tokens",
        ("differ from the base model's",),
        replacing(Qwen25VLWithDetection, "run_language_model", read(with_mask=False, one_dimensional=False)),
    ),
    Bug(
        "positions of text for image tokens",
        "loss.tokens",
        ("differ from the base model's",),
        replacing(Qwen25VLWithDetection, "run_language_model", read(with_mask=True, one_dimensional=True)),
    ),
    Bug(
        "image tokens detached",
        "loss.gradients",
        ("lm has no path to merger",),
        seeing(lambda patches, embeds: (patches, embeds.detach())),
    ),
    Bug(
        "patches of the head detached",
        "test.head.gradients",
        ("vision patches cut off from the graph",),
        seeing(lambda patches, embeds: (patches.detach(), embeds)),
    ),
    Bug(
        "language model's states detached for the head",
        "test.head.gradients",
        ("hidden states cut off from the graph",),
        context_detached,
    ),
    Bug(
        "a layer of the head without a gradient",
        "loss.gradients",
        ("get no gradient from any term", "head.query"),
        layer_cut_off,
    ),
]
