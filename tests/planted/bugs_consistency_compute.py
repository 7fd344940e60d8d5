"""Bugs that ``consistency.compute.*`` is for: padding, positions, attention, generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_vl import modeling_qwen3_vl

from qwendet.encoding import collate
from qwendet.encoding.collate import Batch, rope_positions
from qwendet.inference import generation
from qwendet.inference import predictor as inference
from qwendet.inference.cached_forward import AnswersInProgress
from qwendet.model import attention
from qwendet.model.detector import Qwen25VLWithDetection
from tests.planted.bug import Bug
from tests.planted.in_code import Plant, in_batch, in_reading, replacing

BY_MASK = ("model.attn_implementation=eager",)
"""Attention that goes by masks and positions, as Flash Attention does."""


MODELLING = (modeling_qwen2_vl, modeling_qwen2_5_vl, modeling_qwen3_vl, modeling_qwen3_5)
PACKED = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")
"""Families whose attention goes by samples, so that they can be packed."""


def in_every_class(name: str, value: Any) -> Plant:
    """Replace a function of transformers in the modules of all families."""
    return lambda monkeypatch: [monkeypatch.setattr(module, name, value) for module in MODELLING] and None


def right_pad(lengths: Sequence[int]) -> Any:
    return collate._Place((len(lengths), max(lengths)), [max(lengths) * row for row in range(len(lengths))])


def one_dimension(mm_token_type_ids: Tensor, image_grid_thw: Tensor, merge_size: int) -> Tensor:
    return torch.arange(len(mm_token_type_ids)).expand(3, -1)


def one_on_behind_images(mm_token_type_ids: Tensor, image_grid_thw: Tensor, merge_size: int) -> Tensor:
    later = mm_token_type_ids.flip(0).cumsum(0).flip(0) == 0
    return rope_positions(mm_token_type_ids, image_grid_thw, merge_size) + later.long()


def without_mask(self: Any, batch: Batch) -> Batch:
    return batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}


def with_padding(self: Any, batch: Batch) -> Batch:
    rows, length = batch["input_ids"].shape
    return batch | {"num_tokens": [length] * rows}


def without_rows_for_text(self: Any, batch: Batch) -> Batch:
    """Three rows of positions, as in every other forward: a mask cannot tell packed samples apart."""
    return batch | {"position_ids": batch["position_ids"][-3:]}


def as_one_sample(self: Any, batch: Batch) -> Batch:
    """Packed samples as one long one."""
    is_packed = len(batch["position_ids"]) == 4
    return batch | {"num_tokens": [sum(batch["num_tokens"])]} if is_packed else batch


def see_what_follows(*args: Any, **settings: Any) -> Any:
    return sdpa_attention_forward(*args, **settings | {"is_causal": False})


def see_everything(*args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Tensor:
    rows, length, _ = inputs_embeds.shape
    return inputs_embeds.new_zeros(rows, 1, length, length)


def with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection.run_language_model

    def read(self: Any, *inputs: Any) -> Tensor:
        return F.dropout(sound(self, *inputs), training=self.training)

    monkeypatch.setattr(Qwen25VLWithDetection, "run_language_model", read)


def steps_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each generated token is placed two behind the last."""
    sound = AnswersInProgress.keep

    def keep(self: Any, counts: Any) -> None:
        sound(self, counts)
        self._start = self._start + 1

    monkeypatch.setattr(AnswersInProgress, "keep", keep)


def in_generation(change: Callable[..., dict[str, Any]]) -> Any:
    """Change what text answers are asked with: the names and values of ``generate_answers``."""
    sound = inference.generate_answers

    def answers(detector: Any, tokenizer: Any, batch: Batch, max_new_tokens: int, *others: Any) -> Any:
        asked = {"batch": batch, "max_new_tokens": max_new_tokens}
        asked |= change(**asked)
        return sound(detector, tokenizer, asked["batch"], asked["max_new_tokens"], *others)

    return replacing(inference, "generate_answers", answers)


def counted_one_by_one(batch: Batch, **_: Any) -> dict[str, Any]:
    places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
    return {"batch": batch | {"position_ids": places}}


def unscaled(batch: Batch, **_: Any) -> dict[str, Any]:
    return {"batch": batch | {"pixel_values": batch["pixel_values"] * 255}}


def penalise_repetition(self: Any, logits: Tensor) -> Tensor:
    """Lower the logit of what was written last, as a repetition penalty would."""
    return logits.scatter(2, self._block[:, -1:, None], -1e3)


def draw(self: Any, logits: Tensor) -> Tensor:
    noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    return logits / 3 - (-noise.log()).log()


def choosing_by(scores: Callable[[Any, Tensor], Tensor]) -> Any:
    """Choose tokens by other scores than the model's."""
    sound = AnswersInProgress._forward

    def forward(self: Any, *given: Any, **settings: Any) -> Tensor:
        return scores(self, sound(self, *given, **settings))

    return replacing(AnswersInProgress, "_forward", forward)


def stay(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = AnswersInProgress.leave
    monkeypatch.setattr(AnswersInProgress, "leave", lambda self, stay: None if stay else sound(self, stay))


def accept_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token of a draft that does not hold is written all the same."""
    sound = generation.verified

    def verified(found: Any, logits: Tensor, draft: Any, *others: Any) -> Any:
        choices = sound(found, logits, draft, *others)
        if len(choices) <= len(draft):
            choices[-1] = choices[-1]._replace(token=draft[len(choices) - 1])
        return choices

    monkeypatch.setattr(generation, "verified", verified)


def see_what_fell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row goes on to see what it read and did not keep, where another row kept as many tokens."""
    sound = AnswersInProgress.keep

    def keep(self: Any, counts: Any) -> None:
        seen = self._slots.clone()
        sound(self, counts)
        self._slots = seen[:, : self._slots.shape[1]]

    monkeypatch.setattr(AnswersInProgress, "keep", keep)


def eager_without_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain attention forgets its mask, as a hand-written replacement may."""
    sound = modeling_qwen2_5_vl.eager_attention_forward  # in the others it is the same

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kw: Any
    ) -> Any:
        return sound(module, query, key, value, None, **kw)

    in_every_class("eager_attention_forward", forward)(monkeypatch)


COMPUTE_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "padded on the right",
        "test.compute.positions",
        ("padded on the left",),
        replacing(collate, "_padded", right_pad),
    ),
    Bug(
        "mm_token_type_ids dropped",
        "test.compute.positions",
        ("mm_token_type_ids",),
        in_batch(lambda batch: {"mm_token_type_ids": torch.zeros_like(batch["mm_token_type_ids"])}),
    ),
    Bug(
        "positions from one dimension in generation",
        "test.compute.positions",
        ("expected",),
        in_generation(counted_one_by_one),
    ),
    Bug(
        "text behind an image one position on",
        "test.compute.positions",
        ("expected",),
        replacing(collate, "rope_positions", one_on_behind_images),
    ),
    Bug(
        "positions from one dimension",
        "test.compute.positions",
        ("expected",),
        replacing(collate, "rope_positions", one_dimension),
    ),
    Bug(
        "generated tokens are placed too far on",
        "test.compute.positions",
        ("generated token",),
        steps_of_two,
    ),
    Bug(
        "padding taken for tokens",
        "test.compute.padding",
        ("alone and left-padded", "tolerance"),
        in_reading(with_padding),
        families=PACKED,
    ),
    Bug(
        "attention mask missing",
        "test.compute.padding",
        ("alone and left-padded", "tolerance"),
        in_reading(without_mask),
        BY_MASK,
    ),
    Bug(
        "packed samples see each other",
        "test.compute.packed",
        ("packed and in a row of its own", "tolerance"),
        in_reading(as_one_sample),
        ("train.packing=true",),
        families=PACKED,
    ),
    Bug(
        "packed samples see each other by their positions",
        "test.compute.packed",
        ("packed and in a row of its own", "tolerance"),
        in_reading(without_rows_for_text),
        ("train.packing=true", *BY_MASK),
        families=PACKED,
    ),
    Bug(
        "no attention keeps packed samples apart",
        "consistency.build.load",
        ("packed samples would see each other",),
        replacing(attention, "lengths_in_order", lambda _, shape: [0, shape[1]]),
        ("train.packing=true",),
        families=PACKED,
    ),
    Bug(
        "attention sees the answer",
        "test.compute.causal",
        ("before two different answers", "tolerance"),
        replacing(attention, "sdpa_attention_forward", see_what_follows),
        families=PACKED,
    ),
    Bug(
        "attention sees the answer under its mask",
        "test.compute.causal",
        ("before two different answers", "tolerance"),
        in_every_class("create_causal_mask", see_everything),
        BY_MASK,
    ),
    Bug("dropout in training", "consistency.compute.noise", ("of the largest value",), with_dropout),
    Bug(
        "pixels not normalised for generation",
        "test.compute.served",
        ("in generation and in training",),
        in_generation(unscaled),
    ),
    Bug(
        "repetition penalty in generation",
        "test.compute.generation",
        ("was likeliest",),
        choosing_by(penalise_repetition),
    ),
    Bug(
        "answers are cut",
        "test.compute.generation",
        ("cut after 5 tokens",),
        in_generation(lambda **_: {"max_new_tokens": 5}),
    ),
    Bug(
        "answers are drawn by lot",
        "test.compute.generation",
        ("was likeliest",),
        choosing_by(draw),
    ),
    Bug(
        "generation goes on behind the end of turn",
        "test.compute.generation",
        ("had not ended",),
        stay,
    ),
    Bug(
        "a draft accepted one token too far",
        "test.compute.drafts",
        ("with drafts",),
        accept_one_too_many,
        families=PACKED,
    ),
    Bug(
        "the cache keeps what a draft got wrong",
        "test.compute.drafts",
        ("with drafts",),
        replacing(DynamicCache, "crop", lambda self, _: None),
        families=PACKED,
    ),
    Bug(
        "a row sees what its draft got wrong",
        "test.compute.drafts",
        ("with drafts",),
        see_what_fell,
        families=PACKED,
    ),
    Bug(
        "attention without its mask",
        "consistency.compute.attention",
        ("under eager and sdpa",),
        eager_without_mask,
    ),
]
