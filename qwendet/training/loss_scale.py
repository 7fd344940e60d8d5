"""float16: did gradients overflow by the scale of the loss alone, so that the scaler skips the step?

Read in transformers 5.23 and accelerate 1.15: gradients are unscaled, and looked through by the scaler,
before their norm is taken and they are clipped; then the scaler makes the step, or skips it and halves its
scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qwendet.model.spread import of_this_process

SCALE_TOO_HIGH = "fp16 gradients overflowed, the loss scale is halved"


def scale_was_too_high(accelerator: Any, model: nn.Module) -> bool:
    """Whether the scaler will skip a step whose gradient norm is not finite, and halve its scale.

    It skips if it found anything that is not finite; clipping has left none of that finite. At a scale of 1
    the gradients themselves are at fault. To be called on all processes, whose gradients may be spread.
    """
    scaler = accelerator.scaler
    if scaler is None or scaler.get_scale() <= 1:
        return False
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    broken = sum(not bool(of_this_process(gradient).isfinite().all()) for gradient in gradients)
    on_all = accelerator.reduce(torch.tensor(broken, device=accelerator.device), reduction="sum")
    return bool(on_all > 0)
