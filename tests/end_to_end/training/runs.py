"""What the tests of training share: how a run's rows and weights are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from qwendet.config.schema import Config
from qwendet.inference.predictor import Predictor

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
