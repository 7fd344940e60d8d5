"""Whether samples packed into one row stay apart, tried on the model at hand.

Which of positions, mask and cache attention goes by has changed between versions of transformers, and where
it goes by another one, samples read each other without an error.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor

from qwendet.errors import ConfigError, EnvironmentLacksError
from qwendet.model.detector import Qwen25VLWithDetection

PROBE_TOKENS = 8
LARGEST_CHANGE = 1e-4
"""Of normalised hidden states; a leak is thousands of times larger."""


@torch.no_grad()
def require_isolation(detector: Qwen25VLWithDetection) -> None:
    """Run two short packed texts, then change the first: the second must not notice."""
    if reason := detector.family.packing_refusal:
        raise ConfigError(
            f"{detector.family.name} cannot be packed: {reason}", "train.packing", "set it to false"
        )
    first, second, other = torch.arange(3 * PROBE_TOKENS, device=detector.device).view(3, PROBE_TOKENS)
    change = (_second(detector, first, second) - _second(detector, other, second)).abs().max().item()
    if not change < LARGEST_CHANGE:
        raise EnvironmentLacksError(
            f"packed samples would see each other: changing one changed another's states by {change:.2g}"
            f" (attention {detector.config._attn_implementation}, transformers {transformers.__version__})",
            "train.packing",
            "set train.packing to false, or model.attn_implementation to sdpa",
        )


def _second(detector: Qwen25VLWithDetection, first: Tensor, second: Tensor) -> Tensor:
    """Hidden states ``(tokens, D)`` of the second of two packed texts."""
    input_ids = torch.cat([first, second])[None]
    positions = torch.arange(PROBE_TOKENS, device=input_ids.device).repeat(2).expand(4, 1, -1)
    embeds = detector.vlm.get_input_embeddings()(input_ids)
    with detector.computing():
        batch = {"position_ids": positions, "num_tokens": [PROBE_TOKENS, PROBE_TOKENS]}
        hidden = detector.run_language_model(batch, embeds)
    return hidden[0, PROBE_TOKENS:].float()
