"""The moving average of the trained weights (EMA), which is what is evaluated and kept.

    after step n:   average ← d · average + (1 - d) · weights,   d = min(decay, (1 + n) / (10 + n))

The averaging is torch's own (``torch.optim.swa_utils``); training goes on with the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from qwendet.config.schema import EmaConfig
from qwendet.loading.lora import is_adapter
from qwendet.model.spread import fill, of_this_process, whole

FOLDER, FILE = "ema", "weights.safetensors"  # of a checkpoint; loaders look for weights beside the model


def is_averaged(name: str, settings: EmaConfig | None) -> bool:
    """Whether there is an average of a trained parameter."""
    return settings is not None and (settings.parts == "all" or name.startswith("head.") or is_adapter(name))


class WeightAverage(TrainerCallback):
    """The average, moved after each step."""

    def __init__(self, detector: nn.Module, settings: EmaConfig) -> None:
        self._own = {
            name: parameter
            for name, parameter in detector.named_parameters()
            if parameter.requires_grad and is_averaged(name, settings)
        }
        decay = settings.decay

        def move(average: Any, own: Any, steps: Any) -> None:
            now = int(steps)
            get_ema_multi_avg_fn(min(decay, (1 + now) / (10 + now)))(average, own, steps)

        self._average = AveragedModel(nn.ParameterList(self._own.values()), multi_avg_fn=move)

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        """Move the average towards the weights."""
        self._average.update_parameters(nn.ParameterList(self._own.values()))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it, bitwise."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for own, average in zip(self._own.values(), self._average.module.parameters(), strict=True):
            here, there = of_this_process(own), of_this_process(average)
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)

    def _state(self) -> dict[str, Tensor]:
        averages = self._average.module.parameters()
        named = {name: average.detach() for name, average in zip(self._own, averages, strict=True)}
        return {**named, "steps": self._average.n_averaged}

    def save(self, checkpoint: Path, *, writes: bool) -> None:
        """Write the average into a checkpoint; to be called on all processes that share the model."""
        state = {name: whole(tensor).contiguous() for name, tensor in self._state().items()}
        if writes:
            (checkpoint / FOLDER).mkdir()
            save_file(state, checkpoint / FOLDER / FILE)

    def load(self, checkpoint: Path) -> None:
        """Read the average of a checkpoint."""
        fill(self._state(), checkpoint / FOLDER, FILE, "moving average")
