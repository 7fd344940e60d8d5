"""Under fp16 a gradient that overflows by the loss scale skips a step; one broken by itself stops the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from qwendet.config.load import build_config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.training.build import create_trainer
from qwendet.training.trainer import DetectionTrainer, TrainingDivergedError


class NoteWeights(TrainerCallback):
    """Keeps one weight as it was after each step."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.after = [weight.detach().clone()]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.after.append(self.weight.detach().clone())


def make_trainer(folder: Path, scaler: torch.amp.GradScaler) -> DetectionTrainer:
    """A trainer on the CPU with the loss scaler that fp16 would give it on a GPU."""
    scenes = write_dataset(DEMO, folder / "train.jsonl", 8, seed=1)
    settings = {
        "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
        "data": {"train": str(scenes), "labels": list(DEMO.labels)},
        "detection": {"hidden_size": 64, "num_layers": 1, "num_heads": 4},
        "train": {"output_dir": str(folder / "run"), "max_steps": 3, "logging_steps": 1, "batch_size": 2},
    }
    trainer = create_trainer(build_config(settings, "test"))
    trainer.accelerator.scaler = scaler
    # accelerate unscales where its own settings say fp16; the order of the steps is the Trainer's.
    trainer.accelerator.unscale_gradients = lambda optimizer=None: scaler.unscale_(
        trainer.optimizer.optimizer
    )
    return trainer


def merger_weight(trainer: DetectionTrainer) -> Tensor:
    weight: Tensor = trainer.bundle.detector.vlm.model.visual.merger.mlp[0].weight
    return weight


def test_gradients_that_overflow_by_the_scale__skip_the_step_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-110)
    trainer = make_trainer(tmp_path, scaler)
    notes = NoteWeights(merger_weight(trainer))
    trainer.add_callback(notes)
    with caplog.at_level(logging.WARNING, logger="qwendet"):
        trainer.train()
    before, skipped, *updated = notes.after
    assert torch.equal(skipped, before)
    assert not torch.equal(updated[0], skipped)
    assert not torch.equal(updated[1], updated[0])
    assert all(weight.isfinite().all() for weight in updated)
    said = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert said == ["step 1 is skipped: fp16 gradients overflowed, the loss scale is halved"]
    rows = [row for row in trainer.state.log_history if "loss/total" in row]
    assert [row["skipped_steps"] for row in rows] == [1.0, 1.0, 1.0]
    assert scaler.get_scale() == 2.0**17


def test_gradients_that_are_nan_at_any_scale__stop_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, torch.amp.GradScaler("cpu", init_scale=4.0))
    merger_weight(trainer).register_hook(lambda gradient: gradient * float("nan"))
    notes = NoteWeights(merger_weight(trainer))
    trainer.add_callback(notes)
    with pytest.raises(TrainingDivergedError, match=r"step 3: not finite: the gradient norm"):
        trainer.train()
    assert trainer.accelerator.scaler.get_scale() == 1.0
    assert all(torch.equal(weight, notes.after[0]) for weight in notes.after)


def test_a_loss_that_is_not_finite__stops_the_run_under_a_scaler_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, torch.amp.GradScaler("cpu"))
    with torch.no_grad():
        merger_weight(trainer)[0] = float("nan")
    with pytest.raises(TrainingDivergedError, match=r"step 1: not finite: .*total"):
        trainer.train()


def test_a_norm_that_overflows_with_finite_gradients__stops_the_run(tmp_path: Path) -> None:
    """The scaler finds nothing and would step: with gradients that clipping has made zero."""
    trainer = make_trainer(tmp_path, torch.amp.GradScaler("cpu", init_scale=2.0))
    merger_weight(trainer).register_hook(lambda gradient: torch.full_like(gradient, 1e30))
    with pytest.raises(TrainingDivergedError, match=r"step 1: not finite: the gradient norm"):
        trainer.train()


def test_a_scaler_that_is_switched_off__excuses_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, torch.amp.GradScaler("cpu", enabled=False))
    merger_weight(trainer).register_hook(lambda gradient: gradient / 0)
    with pytest.raises(TrainingDivergedError, match=r"step 1: not finite: the gradient norm"):
        trainer.train()
