"""What a step trains: groups, padding, accumulation, processes, and nothing that is not finite."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import TrainerCallback

from qwendet.encoding.encode import EncodedSample, Encoder
from qwendet.errors import QwendetError
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.model.precision import GROUPS, group_of
from qwendet.train import RunSummary, train
from qwendet.training.build import create_trainer
from qwendet.training.trainer import DetectionTrainer, TrainingDivergedError
from tests.end_to_end.training.runs import (
    TERMS,
    BeforeStep,
    MakeConfig,
    assert_same,
    parameters_of,
    rows_of,
    shape_of,
)


@pytest.mark.parametrize("frozen", GROUPS)
def test_frozen__a_group_with_learning_rate_0_does_not_change_and_the_others_do(
    frozen: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    trainer = create_trainer(
        make_config(
            tmp_path / "run",
            train={"max_steps": 3, "lr_scheduler": "constant", f"{frozen}_learning_rate": 0.0},
        )
    )
    before = parameters_of(trainer.bundle.detector)
    trainer.train()
    after = parameters_of(trainer.bundle.detector)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {group_of(name, QWEN2_5_VL) for name in changed} == set(GROUPS) - {frozen}
    unchanged = {name for name in before.keys() - changed if group_of(name, QWEN2_5_VL) != frozen}
    assert unchanged == set(), "every parameter of a group with a learning rate trains"
    assert frozen not in {group["name"] for group in trainer.optimizer.param_groups}


@pytest.fixture(scope="module")
def four(scenes: Path) -> Path:
    """Four of the samples, the negative and the one with its own teacher among them."""
    lines = (scenes / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = scenes / "four.jsonl"
    path.write_text("".join(lines[3:7]), encoding="utf-8")
    return path


def test_right_padding__planted_into_the_collator_stops_before_the_first_step(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """The fifth bug of the original scripts."""
    trainer = create_trainer(make_config(tmp_path / "run"))
    collate = trainer.data_collator

    def pad_right(samples: Any) -> Any:
        batch = collate(samples)
        pads = (1 - batch["attention_mask"]).sum(1).tolist()
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
            batch[name] = torch.stack([row.roll(-pad) for row, pad in zip(batch[name], pads, strict=True)])
        return batch

    trainer.data_collator = pad_right
    with pytest.raises(QwendetError, match="not padded on the left"):
        trainer.train()


class BeforeUpdate(TrainerCallback):
    """Notes the gradients that the optimizer is about to use."""

    def __init__(self, trainer: DetectionTrainer, found: dict[str, Tensor]) -> None:
        self.trainer = trainer
        self.found = found

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, parameter in self.trainer.bundle.detector.named_parameters():
            if parameter.grad is not None:
                self.found[name] = parameter.grad.clone()


def test_accumulation__four_of_one_is_one_of_four(
    four: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """The whole file is one step, so that both see the same samples."""
    rows, gradients = [], []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        settings = {"max_steps": 1, "batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        data = {"train": str(four)}
        trainer = create_trainer(make_config(tmp_path / str(batch_size), train=settings, data=data))
        found: dict[str, Tensor] = {}
        trainer.add_callback(BeforeUpdate(trainer, found))
        trainer.train()
        gradients.append(found)
        rows.append(next(row for row in trainer.state.log_history if "loss/total" in row))
    assert rows[0]["loss/teacher"] > 0
    for name in (*(f"loss/{term}" for term in TERMS), "grad_norm", "loss"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-4), name
    scale = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_two_processes__two_of_two_is_one_of_four(
    four: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """`torchrun`: the same losses as one process, one set of files, no process left behind."""
    rows = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        settings = {"max_steps": 2, "batch_size": 4 // processes, "warmup_ratio": 0.0}
        config = make_config(run, train=settings, data={"train": str(four), "val": None})
        if processes == 1:
            train(config)
        else:
            path = tmp_path / "config.yaml"
            path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())), encoding="utf-8")
            launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
            command = [sys.executable, "-m", *launcher, "qwendet", "train", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
        assert shape_of(run) == ["checkpoint-2", "final", "tensorboard"]
        rows.append(rows_of(run / "checkpoint-2"))
    for one, two in zip(*rows, strict=True):
        for name in (*(f"loss/{term}" for term in TERMS), "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name


def test_gradient_checkpointing__same_losses_and_gradient_norm(
    finished: RunSummary, make_config: MakeConfig, tmp_path: Path
) -> None:
    trainer = create_trainer(
        make_config(tmp_path / "run", model={"gradient_checkpointing": True}, train={"max_steps": 1})
    )
    trainer.train()
    found, wanted = trainer.state.log_history[0], rows_of(finished.output_dir / "checkpoint-6")[0]
    for name in (*(f"loss/{term}" for term in TERMS), "grad_norm"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name


def run_until_diverged(
    trainer: DetectionTrainer, plant: Callable[[int], object] = lambda done: None
) -> tuple[str, dict[str, Tensor]]:
    """The error's text, and the weights as they were before the step that went wrong."""
    before: dict[str, Tensor] = {}

    def prepare(done: int) -> None:
        plant(done)
        before.update(parameters_of(trainer.bundle.detector))

    trainer.add_callback(BeforeStep(prepare))
    with pytest.raises(TrainingDivergedError) as caught:
        trainer.train()
    assert caught.value.exit_code == 1
    return str(caught.value), before


def test_diverged__a_parameter_that_is_nan_stops_before_the_update(
    make_config: MakeConfig, tmp_path: Path, scenes: Path
) -> None:
    trainer = create_trainer(make_config(tmp_path / "run"))
    head = trainer.bundle.detector.head
    assert head is not None

    def plant(done: int) -> None:
        if done == 2:
            with torch.no_grad():
                head.norm.weight[0] = float("nan")

    message, before = run_until_diverged(trainer, plant)
    where, _, what = message.partition(": step 3: not finite: ")
    assert what.startswith("class, detection, giou, l1, total (look at these samples, "), message
    assert where.startswith("samples ")
    assert where.count(f"{scenes / 'train.jsonl'}:") == 4
    assert_same(parameters_of(trainer.bundle.detector), before)
    assert shape_of(tmp_path / "run") == ["tensorboard"]


def test_diverged__pixels_that_are_nan_name_their_sample(
    make_config: MakeConfig, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Encoder.encode

    def with_nan(self: Encoder, *args: Any, **kwargs: Any) -> EncodedSample:
        encoded = encode(self, *args, **kwargs)
        if encoded.where.endswith(":8"):
            encoded.pixel_values[-1, 0] = float("nan")
        return encoded

    monkeypatch.setattr(Encoder, "encode", with_nan)
    settings = {"batch_size": 1, "max_steps": 20, "save_steps": 100}
    trainer = create_trainer(make_config(tmp_path / "run", train=settings))
    message, before = run_until_diverged(trainer)
    assert message.startswith(f"samples {scenes / 'train.jsonl'}:8: step ")
    assert re.search(r"step \d+: not finite: class, detection, giou, l1, lm, student, ", message)
    assert_same(parameters_of(trainer.bundle.detector), before)


def test_diverged__a_gradient_that_is_infinite_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    trainer = create_trainer(make_config(tmp_path / "run"))
    weight = trainer.bundle.detector.vlm.model.visual.merger.mlp[0].weight
    weight.register_hook(lambda gradient: gradient / 0)
    message, before = run_until_diverged(trainer)
    assert "step 1: not finite: the gradient norm" in message
    assert_same(parameters_of(trainer.bundle.detector), before)
