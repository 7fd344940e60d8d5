"""Attention of each sample by itself: what the published one computes under a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qwendet.encoding.collate import Batch
from qwendet.model.attention import (
    PER_SEQUENCE,
    lengths_in_order,
    per_sequence_attention,
    per_sequence_inputs,
)
from qwendet.model.detector import Qwen25VLWithDetection

HEADS, HEAD_SIZE = 4, 8
PADDED = [3, 7, 1]


@contextmanager
def under_masks(detector: Qwen25VLWithDetection) -> Iterator[None]:
    """transformers' own call of SDPA in the language model, until the block ends."""
    vlm: Any = detector.vlm
    vlm.set_attn_implementation({"text_config": "sdpa"})
    try:
        yield
    finally:
        vlm.set_attn_implementation({"text_config": PER_SEQUENCE})


class Layer(nn.Module):
    """What transformers' attention asks of the layer that calls it."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def mask_of(num_tokens: Sequence[int], shape: tuple[int, int]) -> Tensor:
    """``(B, 1, L, L)`` bool: which tokens see which, written from the samples' places."""
    rows, length = shape
    seen = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    start = 0
    for sample, own in enumerate(num_tokens):
        row, first = (sample, length - own) if rows > 1 else (0, start)
        seen[row, 0, first : first + own, first : first + own] = torch.ones(own, own).tril().bool()
        start += own
    return seen


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(3, 7), (1, 11)], ids=["padded", "packed"])
def test_per_sequence_attention__is_that_under_the_samples_mask(shape: tuple[int, int], groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(HEADS, HEAD_SIZE), *[(HEADS // groups, HEAD_SIZE)] * 2]
    states = [
        torch.randn(*shape, *size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in sizes
    ]
    given = [part.transpose(1, 2) for part in states]
    mask = mask_of(PADDED, shape)
    is_token = mask[:, 0].any(-1)
    own, _ = per_sequence_attention(Layer(groups), *given, None, lengths=lengths_in_order(PADDED, shape))
    published, _ = sdpa_attention_forward(Layer(groups), *given, mask)
    torch.testing.assert_close(own[is_token], published[is_token], rtol=0, atol=1e-12)
    assert own.shape == (*shape, HEADS, HEAD_SIZE)
    assert not own[~is_token].any()
    upstream = torch.randn(own.shape, generator=generator, dtype=torch.float64) * is_token[..., None, None]
    found = torch.autograd.grad(own, states, upstream)
    wanted = torch.autograd.grad(published, states, upstream)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_per_sequence_attention__without_lengths__goes_by_the_mask() -> None:
    """As in generation, whose queries are fewer than its keys."""
    query, key, value = (torch.randn(2, HEADS, count, HEAD_SIZE) for count in (1, 5, 5))
    mask = torch.tensor([True, True, True, True, True, False, False, True, True, True]).view(2, 1, 1, 5)
    own, _ = per_sequence_attention(Layer(1), query, key, value, mask)
    published, _ = sdpa_attention_forward(Layer(1), query, key, value, mask)
    assert torch.equal(own, published)


def test_per_sequence_attention__under_autocast__has_the_type_of_the_values() -> None:
    """Rotary embeddings raise queries and keys to float32; attention lowers them again."""
    query, key = torch.randn(2, 1, HEADS, 5, HEAD_SIZE)
    value = torch.randn(1, HEADS, 5, HEAD_SIZE, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own, _ = per_sequence_attention(Layer(1), query, key, value, None, lengths=[2, 3])
        published, _ = sdpa_attention_forward(Layer(1), query, key, value, None)
    assert own.dtype == published.dtype == torch.bfloat16


def test_lengths_in_order__that_are_not_the_batch_s__are_an_error() -> None:
    states = torch.randn(1, HEADS, 5, HEAD_SIZE)
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        per_sequence_attention(Layer(1), states, states, states, None, lengths=[0, 3, 0, 3])


@pytest.mark.parametrize("num_tokens", [[4, 6], [4, 6, 2]])
def test_lengths_in_order__one_row__may_begin_with_padding(num_tokens: list[int]) -> None:
    lengths = lengths_in_order(num_tokens, (1, 20))
    assert lengths[0] == 20 - sum(num_tokens)
    assert lengths[1::2] == num_tokens
    assert not any(lengths[2::2])


def test_detector__losses_and_gradients_are_those_of_published_attention(
    detector64: Qwen25VLWithDetection, batch: Batch
) -> None:
    language_model = detector64.vlm.model.language_model
    assert language_model.config._attn_implementation == PER_SEQUENCE
    parameters = [parameter for parameter in detector64.parameters() if parameter.requires_grad]
    results = []
    for way in (nullcontext, under_masks):
        with way(detector64):
            output = detector64(batch)
            assert output.tokens is not None
            assert output.head is not None
            total = output.tokens.teacher_sum + output.tokens.student_sum + output.head.boxes_cxcywh.sum()
            results.append((total, torch.autograd.grad(total, parameters, allow_unused=True)))
    (own, own_gradients), (published, published_gradients) = results
    assert own.item() == pytest.approx(published.item(), rel=0, abs=1e-9)
    for one, other in zip(own_gradients, published_gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_detector__gives_no_mask_beside_lengths(detector64: Qwen25VLWithDetection, batch: Batch) -> None:
    masks: list[Any] = []
    layer = detector64.vlm.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        detector64(batch)
        with under_masks(detector64):
            detector64(batch)
    handle.remove()
    assert masks[0] is None
    assert masks[1].shape == (len(batch["input_ids"]), 1, *[batch["input_ids"].shape[1]] * 2)


def test_apart__a_sliding_window_goes_by_the_mask(
    detector64: Qwen25VLWithDetection, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample by itself, a token would see all before it."""
    language_model = detector64.vlm.model.language_model
    layers = ["sliding_attention"] * language_model.config.num_hidden_layers
    monkeypatch.setattr(language_model.config, "layer_types", layers)
    mask, positions = batch["attention_mask"], batch["position_ids"]
    found = per_sequence_inputs(language_model, positions, mask, batch["num_tokens"], mask.shape)
    assert found == {"attention_mask": mask, "position_ids": positions}
