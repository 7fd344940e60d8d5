"""Bugs that ``consistency.compute.*`` is for: padding, positions, attention, generation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from qwendet import inference
from qwendet.data import collate
from qwendet.data.collate import Batch
from qwendet.model import generation
from qwendet.model.detector import Qwen25VLWithDetection
from tests.planted.bug import Bug
from tests.planted.in_code import in_batch, in_reading, replacing


def right_pad(lengths: Sequence[int]) -> Any:
    return collate._Place((len(lengths), max(lengths)), tuple(range(len(lengths))), (0,) * len(lengths))


def one_dimension(self: Any, input_ids: Tensor, *args: Any, attention_mask: Tensor, **kwargs: Any) -> Any:
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return positions.expand(3, -1, -1), torch.zeros(len(input_ids), 1, dtype=torch.int64)


def one_on_behind_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Qwen2_5_VLModel.get_rope_index

    def positions(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        found, deltas = sound(self, input_ids, *args, **kwargs)
        later = (input_ids == self.config.image_token_id).long().flip(1).cumsum(1).flip(1) == 0
        return found + later.to(found), deltas + 1

    monkeypatch.setattr(Qwen2_5_VLModel, "get_rope_index", positions)


def without_mask(self: Any, batch: Batch) -> Batch:
    return batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}


def without_rows_for_text(self: Any, batch: Batch) -> Batch:
    """Three rows of positions, as in every other forward: attention cannot tell packed samples apart."""
    return batch | {"position_ids": batch["position_ids"][1:]} if "position_ids" in batch else batch


def see_everything(*args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Tensor:
    rows, length, _ = inputs_embeds.shape
    return inputs_embeds.new_zeros(rows, 1, length, length)


def with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection._read

    def read(self: Any, *inputs: Any) -> Tensor:
        return F.dropout(sound(self, *inputs), training=self.training)

    monkeypatch.setattr(Qwen25VLWithDetection, "_read", read)


def steps_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each generated token is placed two behind the last."""
    sound = Qwen2_5_VLForConditionalGeneration._update_model_kwargs_for_generation

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = sound(self, *args, **kwargs)
        return found | {"position_ids": found["position_ids"] + 1}

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "_update_model_kwargs_for_generation", update)


def scale_images_at_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = inference.generate_answers

    def answers(vlm: Any, tokenizer: Any, batch: Batch, *args: Any) -> Any:
        return sound(vlm, tokenizer, batch | {"pixel_values": batch["pixel_values"] * 255}, *args)

    monkeypatch.setattr(inference, "generate_answers", answers)


def cut_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = inference.generate_answers

    def answers(vlm: Any, tokenizer: Any, batch: Batch, most: int, *args: Any) -> Any:
        return sound(vlm, tokenizer, batch, min(most, 5), *args)

    monkeypatch.setattr(inference, "generate_answers", answers)


def endless(**settings: Any) -> GenerationConfig:
    """Stop at padding alone."""
    end = {"eos_token_id": settings["pad_token_id"]} if settings else {}
    return GenerationConfig(**settings | end)


def eager_without_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain attention forgets its mask, as a hand-written replacement may."""
    sound = modeling_qwen2_5_vl.eager_attention_forward

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kw: Any
    ) -> Any:
        return sound(module, query, key, value, None, **kw)

    monkeypatch.setattr(modeling_qwen2_5_vl, "eager_attention_forward", forward)


COMPUTE_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "padded on the right",
        "consistency.compute.positions",
        ("padded on the left",),
        replacing(collate, "_padded", right_pad),
    ),
    Bug(
        "mm_token_type_ids dropped",
        "consistency.compute.positions",
        ("mm_token_type_ids",),
        in_batch(lambda batch: {"mm_token_type_ids": torch.zeros_like(batch["mm_token_type_ids"])}),
    ),
    Bug(
        "mm_token_type_ids dropped in generation",
        "consistency.compute.positions",
        ("mm_token_type_ids",),
        replacing(
            generation, "PROMPT_KEYS", ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        ),
    ),
    Bug(
        "text behind an image one position on",
        "consistency.compute.positions",
        ("expected",),
        one_on_behind_images,
    ),
    Bug(
        "positions from one dimension",
        "consistency.compute.positions",
        ("expected",),
        replacing(Qwen2_5_VLModel, "get_rope_index", one_dimension),
    ),
    Bug(
        "generated tokens are placed too far on",
        "consistency.compute.positions",
        ("generated token",),
        steps_of_two,
    ),
    Bug(
        "attention mask missing",
        "consistency.compute.padding",
        ("alone and left-padded", "tolerance"),
        in_reading(without_mask),
    ),
    Bug(
        "packed samples see each other",
        "consistency.compute.packed",
        ("packed and in a row of its own", "tolerance"),
        in_reading(without_rows_for_text),
        ("train.packing=true",),
    ),
    Bug(
        "attention sees the answer",
        "consistency.compute.causal",
        ("before two different answers", "tolerance"),
        replacing(modeling_qwen2_5_vl, "create_causal_mask", see_everything),
    ),
    Bug("dropout in training", "consistency.compute.noise", ("computed twice",), with_dropout),
    Bug(
        "pixels not normalised for generation",
        "consistency.compute.served",
        ("in generation and in training",),
        scale_images_at_inference,
    ),
    Bug(
        "repetition penalty in generation",
        "consistency.compute.generation",
        ("was likeliest",),
        replacing(generation, "GenerationConfig", partial(GenerationConfig, repetition_penalty=3.0)),
    ),
    Bug(
        "answers are cut",
        "consistency.compute.generation",
        ("cut after 5 tokens",),
        cut_answers,
    ),
    Bug(
        "answers are drawn by lot",
        "consistency.compute.generation",
        ("was likeliest",),
        replacing(
            generation,
            "GenerationConfig",
            lambda **s: GenerationConfig(**s | ({"do_sample": True, "temperature": 3.0} if s else {})),
        ),
    ),
    Bug(
        "generation goes on behind the end of turn",
        "consistency.compute.generation",
        ("due behind the end",),
        replacing(generation, "GenerationConfig", endless),
    ),
    Bug(
        "attention without its mask",
        "consistency.compute.attention",
        ("under eager and sdpa",),
        eager_without_mask,
    ),
]
