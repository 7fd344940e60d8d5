"""How a bug is planted into code: something in it is replaced for as long as a test runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from qwendet.checks.consistency import pair
from qwendet.encoding.collate import Batch, StandardDataCollator
from qwendet.inference import predictor as inference
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.training import build as build_trainer

Plant = Callable[[pytest.MonkeyPatch], None]


def replacing(owner: Any, name: str, value: Any) -> Plant:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def changing(owner: Any, name: str, change: Callable[[Any], Any]) -> Plant:
    """Change what a function returns."""
    sound = getattr(owner, name)

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        return change(sound(*args, **kwargs))

    return lambda monkeypatch: monkeypatch.setattr(owner, name, spoilt)


def at_inference(change: Callable[[Bundle], Bundle | None]) -> Plant:
    """Change the build that inference loads, after it was verified."""
    sound = inference.load

    def load(*args: Any, **kwargs: Any) -> Bundle:
        bundle = sound(*args, **kwargs)
        return change(bundle) or bundle

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inference, "load", load)
        monkeypatch.setattr(pair, "load", load)  # of a large model, whose weights come from memory

    return plant


def in_training(change: Callable[[Bundle], Bundle | None]) -> Plant:
    """Change the build that the trainer loads."""
    sound = build_trainer.load

    def load(*args: Any, **kwargs: Any) -> Bundle:
        bundle = sound(*args, **kwargs)
        return change(bundle) or bundle

    return lambda monkeypatch: monkeypatch.setattr(build_trainer, "load", load)


def in_batch(change: Callable[[Batch], dict[str, Any]]) -> Plant:
    """Change what the collator returns."""
    return changing(StandardDataCollator, "__call__", lambda batch: batch | change(batch))


def in_head_inputs(change: Callable[[Tensor, Tensor, Batch], tuple[Tensor, Tensor]]) -> Plant:
    """Change patches and hidden states before the head picks its own."""
    sound = Qwen25VLWithDetection._detect

    def detect(
        self: Qwen25VLWithDetection, patches: Tensor, hidden: Tensor, label_embeds: Tensor, batch: Batch
    ) -> Any:
        return sound(self, *change(patches, hidden, batch), label_embeds, batch)

    return lambda monkeypatch: monkeypatch.setattr(Qwen25VLWithDetection, "_detect", detect)


def in_reading(change: Callable[[Qwen25VLWithDetection, Batch], Batch]) -> Plant:
    """Change the batch that the language model reads in training's forward, which has images."""
    sound = Qwen25VLWithDetection.run_language_model

    def read(self: Qwen25VLWithDetection, batch: Batch, *inputs: Tensor) -> Tensor:
        return sound(self, change(self, batch) if len(inputs) > 1 else batch, *inputs)

    return lambda monkeypatch: monkeypatch.setattr(Qwen25VLWithDetection, "run_language_model", read)
