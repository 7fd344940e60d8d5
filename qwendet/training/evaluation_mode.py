"""The model put to another use in the middle of training, and given back bitwise as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from qwendet.model.detector import Qwen25VLWithDetection


@contextmanager
def evaluation_mode(detector: Qwen25VLWithDetection) -> Iterator[None]:
    """Let the model compute as a loaded one does, until the end of the block.

    Training then goes on as if there had been no block: modules are in the mode they were in, and random
    states of Python, NumPy and torch are those of before.
    """
    modes = [(module, module.training) for module in detector.modules()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # libraries draw from it
    devices = [detector.device] if detector.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            detector.eval()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for module, mode in modes:
            module.training = mode
