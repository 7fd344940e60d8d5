"""Bugs of training that only some families can have: deepstack features, their mergers, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from qwendet.families.family import Family
from qwendet.families.qwen3_vl import QWEN3_VL
from qwendet.loading import lora
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.training import build as build_trainer
from qwendet.training import trainer as training
from tests.planted.bug import Bug
from tests.planted.bugs_loss_trainer import groups
from tests.planted.in_code import Plant, replacing

DEEPSTACK, RECURRENT = ("qwen3_vl",), ("qwen3_5",)
Features = list[tuple[Tensor, ...]]


def handing_on(change: Callable[[Features], Features]) -> Plant:
    """Change the deepstack features that our forward hands to the language model, and it alone."""
    sound = Qwen25VLWithDetection.encode_images

    def encode_images(self: Qwen25VLWithDetection, *given: Any) -> Any:
        patches, images = sound(self, *given)
        images.deepstack_features = change(list(images.deepstack_features))
        return patches, images

    return replacing(Qwen25VLWithDetection, "encode_images", encode_images)


def one_layer_late(features: Features) -> Features:
    return [tuple(torch.zeros_like(image) for image in features[0]), *features]


def without_deepstack_mergers(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    left_out = {id(parameter) for parameter in detector.vlm.model.visual.deepstack_merger_list.parameters()}
    kept = [group | {"params": [p for p in group["params"] if id(p) not in left_out]} for group in found]
    return [group for group in kept if group["params"]]


def mergers_of_the_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freezing and grouping take all but the last merger for parts of the vision tower."""
    for owner, name in ((build_trainer, "freeze_groups"), (training, "parameter_groups")):
        sound = getattr(owner, name)

        def spoilt(detector: Any, family: Family, *given: Any, sound: Any = sound) -> Any:
            return sound(detector, replace(family, merger=("model.visual.merger.",)), *given)

        monkeypatch.setattr(owner, name, spoilt)


LOSS_FAMILY_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "deepstack features dropped",
        "loss.tokens",
        ("differ from the base model's",),
        handing_on(lambda features: []),
        families=DEEPSTACK,
    ),
    Bug(
        "deepstack features dropped by the language model",
        "loss.gradients",
        ("get no gradient from any term", "deepstack_merger_list"),
        replacing(Qwen3VLTextModel, "_deepstack_process", lambda self, hidden, mask, features: hidden),
        families=DEEPSTACK,
    ),
    Bug(
        "deepstack features added one layer late",
        "loss.tokens",
        ("differ from the base model's",),
        handing_on(one_layer_late),
        families=DEEPSTACK,
    ),
    Bug(
        "deepstack mergers in no group",
        "test.loss.optimizer",
        ("merger", "in no group of the optimizer", "deepstack_merger_list"),
        groups(without_deepstack_mergers),
        families=DEEPSTACK,
    ),
    Bug(
        "deepstack mergers trained though frozen",
        "test.loss.optimizer",
        ("train.merger_learning_rate is 0", "it was to be frozen", "deepstack_merger_list"),
        mergers_of_the_tower,
        ("train.merger_learning_rate=0",),
        families=DEEPSTACK,
    ),
    Bug(
        "LoRA targets that miss the linear attention",
        "loss.optimizer",
        ("3 of 4 decoder layers have no adapter in their attention",),
        replacing(lora, "_pattern", lambda targets, family: QWEN3_VL.lora["language"]),
        ("model.lora.rank=4",),
        families=RECURRENT,
    ),
    Bug(
        "LoRA targets named as those of other families",
        "loss.optimizer",
        ("3 of 4 decoder layers have no adapter in their attention",),
        lambda monkeypatch: None,
        ("model.lora.targets=[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]",),
        families=RECURRENT,
    ),
]  # fmt: skip
