"""How far rounding alone moves token losses; measured by ``benchmarks/loss_noise.py``."""

from __future__ import annotations

import torch

MULTIPLE = 16.0
"""What is beyond this many times the noise is no rounding."""
LAYERS = 4
"""Of the model that was measured; a deeper one's noise is taken to grow with its layers."""
TOKEN_LOSS = {
    torch.float64: 9.4e-15,
    torch.float32: 6.3e-7,
    torch.bfloat16: 2.2e-3,
    torch.float16: 2.5e-4,
}
"""Root mean square difference of token losses, alone and unpadded against left-padded in a batch."""


def token_loss_tolerance(dtype: torch.dtype, layers: int) -> float:
    """Largest root mean square difference of token losses that is taken for rounding."""
    return MULTIPLE * TOKEN_LOSS[dtype] * max(1.0, layers / LAYERS)
