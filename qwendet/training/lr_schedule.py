"""The course of the learning rates: a warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from qwendet.config.schema import LrScheduler


def schedule(optimizer: Optimizer, name: LrScheduler, warmup_ratio: float, num_steps: int) -> LambdaLR:
    """Build the schedule of all parameter groups, which hold their highest learning rates.

    The rates rise in ``warmup_ratio`` of the steps; ``constant`` has no warm-up.
    """
    warmup = 0 if name == "constant" else math.ceil(warmup_ratio * num_steps)
    return LambdaLR(optimizer, partial(learning_rate_factor, name=name, warmup=warmup, num_steps=num_steps))


def learning_rate_factor(step: int, *, name: LrScheduler, warmup: int, num_steps: int) -> float:
    """What the learning rates are multiplied by in a step, counted from 0.

    Neither the first step nor the last is taken at rate 0, which would train nothing.

    Example:
        >>> [learning_rate_factor(step, name="linear", warmup=2, num_steps=6) for step in range(6)]
        [0.3333333333333333, 0.6666666666666666, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if name in ("constant", "constant_with_warmup"):
        return 1.0
    done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    return 1 - done if name == "linear" else 0.5 * (1 + math.cos(math.pi * done))
