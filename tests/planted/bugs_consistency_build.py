"""Bugs that ``consistency.build.*`` is for: classes, weights and settings of the two builds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from qwendet import loader
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection
from tests.planted.bug import Bug
from tests.planted.in_code import at_inference, in_training


def without_head(bundle: Bundle) -> Bundle:
    return replace(bundle, detector=Qwen25VLWithDetection(bundle.detector.vlm, None))


def adapters(bundle: Bundle) -> list[LoraLayer]:
    return [module for module in bundle.detector.modules() if isinstance(module, LoraLayer)]


def unloaded_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load_adapter", lambda vlm, folder: None)
    monkeypatch.setattr(loader, "verify_parameters", lambda detector, manifest, folder: None)


@torch.no_grad()
def merged_twice(bundle: Bundle) -> None:
    for layer in adapters(bundle):
        layer.get_base_layer().weight += layer.get_delta_weight("default")


def scaled_twice(bundle: Bundle) -> None:
    for layer in adapters(bundle):
        layer.scaling["default"] *= 2


def bidirectional(bundle: Bundle) -> None:
    """Only unpadded prompts show it: where there is padding, a mask says what may be seen."""
    for layer in bundle.detector.vlm.model.language_model.layers:
        if hasattr(layer, "self_attn"):
            layer.self_attn.is_causal = False


def coarse_norms(bundle: Bundle) -> None:
    for module in bundle.detector.modules():
        for name in ("variance_epsilon", "eps"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 1e-2)


def one_layer_lost(bundle: Bundle) -> None:
    nn.init.normal_(next(bundle.detector.vlm.model.visual.blocks[0].mlp.parameters()))


def through_another_type(bundle: Bundle) -> None:
    for tensor in bundle.detector.parameters():
        other = torch.float16 if tensor.dtype is torch.bfloat16 else torch.bfloat16
        tensor.data = tensor.data.to(other).to(tensor.dtype)


def half_a_model(bundle: Bundle) -> None:
    bundle.detector.vlm.model.visual.half()


def untied(bundle: Bundle) -> None:
    vlm = bundle.detector.vlm
    vlm.lm_head.weight = nn.Parameter(vlm.lm_head.weight.detach().clone())


def other_rope(bundle: Bundle) -> None:
    text = bundle.detector.vlm.config.text_config
    text.rope_parameters = {**text.rope_parameters, "rope_theta": 1e6}


def unverified_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head's keys do not fit, ``strict=False`` passes over it, and nothing compares."""
    monkeypatch.setattr(loader, "load_head_weights", lambda detector, folder: None)
    monkeypatch.setattr(loader, "verify_parameters", lambda detector, manifest, folder: None)


def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved lacks a key; the loader refuses it."""
    sound = PreTrainedModel.save_pretrained

    def save(self: Any, folder: Any, **kwargs: Any) -> None:
        state = {key: value for key, value in self.state_dict().items() if "blocks.0.norm1" not in key}
        sound(self, folder, **kwargs | {"state_dict": state})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)


BUILD_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug("a key is not saved", "consistency.build.load", ("missing",), unloadable),
    Bug(
        "attention not causal at inference",
        "test.build.classes",
        ("is_causal is True in training, False in inference",),
        at_inference(bidirectional),
    ),
    Bug(
        "another epsilon at inference",
        "test.build.classes",
        ("eps",),
        at_inference(coarse_norms),
    ),
    Bug(
        "adapter not loaded",
        "test.build.parameters",
        ("lora_B",),
        unloaded_adapter,
        ("model.lora.rank=4",),
    ),
    Bug(
        "adapter merged and added again",
        "consistency.compute.served",
        ("in training",),
        at_inference(merged_twice),
        ("model.lora.rank=4",),
    ),
    Bug(
        "adapter scaled twice",
        "consistency.compute.served",
        ("in training",),
        at_inference(scaled_twice),
        ("model.lora.rank=4",),
    ),
    Bug("head missing at inference", "test.build.classes", ("no head",), at_inference(without_head)),
    Bug("head loaded with strict=False", "test.build.parameters", ("head.",), unverified_head),
    Bug(
        "a weight is random at inference",
        "test.build.parameters",
        ("differ",),
        at_inference(one_layer_lost),
    ),
    Bug(
        "cast to another type and back",
        "test.build.parameters",
        ("differ",),
        at_inference(through_another_type),
    ),
    Bug("vision tower in half precision", "test.build.dtypes", ("float16",), at_inference(half_a_model)),
    Bug("tied lm_head lost", "test.build.tied", ("two tensors",), at_inference(untied)),
    Bug("rope settings edited", "test.build.settings", ("rope_theta",), at_inference(other_rope)),
    Bug(
        "training starts from a random weight",
        "test.build.source",
        ("differ",),
        in_training(one_layer_lost),
    ),
]
