"""How far rounding alone moves token losses and their gradients; measured by ``benchmarks/loss_noise.py``."""

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
GRADIENT = {
    torch.float64: 1.3e-15,
    torch.float32: 8.3e-7,
    torch.bfloat16: 3.7e-3,
    torch.float16: 7.4e-4,
}
"""Difference of the gradients at the hidden states, as a share of their norm."""


def token_loss_tolerance(dtype: torch.dtype, layers: int) -> float:
    """Largest root mean square difference of token losses that is taken for rounding."""
    return MULTIPLE * TOKEN_LOSS[dtype] * max(1.0, layers / LAYERS)


def gradient_tolerance(dtype: torch.dtype) -> float:
    """Largest difference of gradients, as a share of their norm, that is taken for rounding."""
    return MULTIPLE * GRADIENT[dtype]
