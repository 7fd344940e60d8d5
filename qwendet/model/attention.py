"""Which attention each part of the model computes with."""

from __future__ import annotations

from qwendet.model.per_sequence_attention import PER_SEQUENCE
from qwendet.model.windows import BY_LENGTH


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
