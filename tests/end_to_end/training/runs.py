"""What the tests of training share: how a run's rows and weights are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

import qwendet.train
from qwendet.config.schema import Config
from qwendet.inference.predictor import Predictor
from qwendet.training.build import create_trainer
from qwendet.training.trainer import DetectionTrainer

STEPS = 6
TERMS = ("lm", "teacher", "student", "detection", "class", "l1", "giou", "total")
HEAD_OFF = {
    "detection": {"enabled": False, "hidden_size": None, "num_layers": None, "num_heads": None},
    "data": {"allow": ["config.detection.off_with_boxes"]},
}

MakeConfig = Callable[..., Config]


class BeforeStep(TrainerCallback):
    """Calls a function with the number of finished steps before each step."""

    def __init__(self, action: Callable[[int], object]) -> None:
        self.action = action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action(state.global_step)


def parameters_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def weights_of(folder: Path) -> dict[str, Tensor]:
    return parameters_of(Predictor.from_checkpoint(folder).bundle.detector)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].nan_to_num(7e7), tensor.nan_to_num(7e7)), name


def rows_of(checkpoint: Path) -> list[dict[str, float]]:
    """Rows that were logged, without times and what is divided by them."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    rows = [row for row in state["log_history"] if "loss/total" in row]
    timed = ("time/", "throughput/samples", "throughput/tokens")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]


def shape_of(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def stop_at(monkeypatch: pytest.MonkeyPatch, done: int, signal_number: int, times: int = 1) -> None:
    """Have the next run receive a signal in the step after `done` finished ones."""

    def kill(finished_steps: int) -> None:
        for _ in range(times if finished_steps == done else 0):
            os.kill(os.getpid(), signal_number)

    def create(*args: Any, **kwargs: Any) -> DetectionTrainer:
        trainer = create_trainer(*args, **kwargs)
        trainer.add_callback(BeforeStep(kill))
        return trainer

    monkeypatch.setattr(qwendet.train, "create_trainer", create)
