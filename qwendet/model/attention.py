"""Which attention each part of the model computes with."""

from __future__ import annotations

from qwendet.model.by_sample import BY_SAMPLE
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
        "text_config": BY_SAMPLE if is_sdpa else implementation,
        "vision_config": BY_LENGTH if is_sdpa else implementation,
    }
