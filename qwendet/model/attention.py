"""Attention of the language model, one call for each sample instead of one for all under a mask.

    padded   ..AAAA      packed   AAAABBBBBBCC      . is padding; A, B and C are samples
             BBBBBB
             ....CC

Under a mask every token meets every other of its row, later ones, padding and other samples too, and what
they come to is thrown away. A call that knows of nothing but its sample's tokens takes the causal way, which
leaves the later ones out: half the work of a padded batch, and a share of a packed one that falls with the
number of samples. No mask of the square of a row's length exists, and nothing can leak from one sample into
another. Generation, which has a cache, computes under a mask as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from qwendet.families.family import FULL_ATTENTION, decoder_layer_types
from qwendet.model.vision_tower import BY_LENGTH

PER_SEQUENCE = "qwendet_per_sequence"
"""Name of this attention among those of transformers."""
sdpa_attention_forward = AttentionInterface()["sdpa"]


def attention_by_part(implementation: str) -> dict[str, str]:
    """The ``attn_implementation`` to give transformers, in which ``sdpa`` is our way of calling it.

    Example:
        >>> attention_by_part("flash_attention_2")["vision_config"]
        'flash_attention_2'
    """
    is_sdpa = implementation == "sdpa"
    return {
        "": implementation,
        "text_config": PER_SEQUENCE if is_sdpa else implementation,
        "vision_config": BY_LENGTH if is_sdpa else implementation,
    }


def exact_attention(implementation: str) -> dict[str, str]:
    """SDPA, which float64 has, in the way of another: under masks, or in our way of calling it.

    Example:
        >>> exact_attention("flash_attention_2")["text_config"], exact_attention("sdpa")["text_config"]
        ('sdpa', 'qwendet_per_sequence')
    """
    ours = attention_by_part("sdpa")
    return ours if implementation == "sdpa" else ours | {"text_config": "sdpa"}


def per_sequence_inputs(
    language_model: Any,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    num_tokens: Sequence[int],
    shape: Sequence[int],
) -> dict[str, Any]:
    """What keeps the samples of a batch apart in the published language model: arguments of its forward.

    ``position_ids`` are ``(3, B, L)``, of packed samples ``(4, B, L)`` and without ``attention_mask``.
    """
    config = language_model.config
    is_hybrid = {*decoder_layer_types(config)} != {FULL_ATTENTION}
    if config._attn_implementation != PER_SEQUENCE or is_hybrid:
        return {"attention_mask": attention_mask, "position_ids": position_ids}
    # Without mask and indices of tokens transformers makes no mask.
    lengths = lengths_in_order(num_tokens, shape)
    return {"attention_mask": None, "position_ids": position_ids[-3:], "lengths": lengths}


def lengths_in_order(num_tokens: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Lengths of the padding before each sample and of the sample, in the order of the flattened batch.

    ``shape`` is a row a sample, padded on the left, or one row of all.

    Example:
        >>> lengths_in_order([4, 6, 2], (3, 6))
        [2, 4, 0, 6, 4, 2]
        >>> lengths_in_order([4, 6, 2], (1, 12))
        [0, 4, 0, 6, 0, 2]
    """
    rows, length = shape
    padding = [length - own for own in num_tokens] if rows > 1 else [length - sum(num_tokens)]
    padding += [0] * (len(num_tokens) - len(padding))
    return [one for pair in zip(padding, num_tokens, strict=True) for one in pair]


def per_sequence_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: Sequence[int] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention within samples, as transformers calls it; under the mask where no lengths are given.

    Queries are ``(B, heads, L, d)``, keys and values ``(B, key-value heads, L, d)``, ``lengths`` those of
    :func:`lengths_in_order`; the result is ``(B, L, heads, d)``, 0 at padding, and no weights.
    """
    if lengths is None:
        under_mask: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return under_mask
    parts = [states.transpose(1, 2).flatten(0, 1).split(lengths) for states in (query, key, value)]
    attended = []
    for index, (q, k, v) in enumerate(zip(*parts, strict=True)):
        if index % 2 == 0:
            attended.append(torch.zeros_like(q, dtype=v.dtype))  # autocast leaves rotated queries in float32
            continue
        q, k, v = (states.transpose(0, 1)[None] for states in (q, k, v))
        own, _ = sdpa_attention_forward(module, q, k, v, None, **settings)
        attended.append(own[0])
    rows, _, length, _ = query.shape
    return torch.cat(attended).unflatten(0, (rows, length)), None


AttentionInterface.register(PER_SEQUENCE, per_sequence_attention)
AttentionMaskInterface.register(PER_SEQUENCE, AttentionMaskInterface()["sdpa"])
