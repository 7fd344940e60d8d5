"""Every precision that the config allows trains every weight that is to be trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.loading.lora import is_adapter
from qwendet.model.precision import group_of
from qwendet.train import train
from qwendet.training.build import create_trainer
from tests.end_to_end.training.runs import MakeConfig, assert_same, parameters_of, weights_of

SMALL = {"dtype": "bfloat16"}
IN_BFLOAT16 = {"weights": "bfloat16", "optimizer": "stable_adamw"}
FROZEN = {"vision_learning_rate": 0.0, "language_learning_rate": 0.0}
PRECISIONS: dict[str, dict[str, dict[str, Any]]] = {
    "float32": {},
    "float32 under autocast": {"train": {"autocast": "bf16"}},
    "the recipe of a GPU": {"model": SMALL},
    "the recipe, frozen parts": {"model": SMALL, "train": FROZEN},
    "the recipe, head alone": {"model": SMALL, "train": {"learning_rate": 0.0}},
    "the recipe, LoRA": {"model": SMALL | {"lora": {"rank": 4, "targets": "all"}}},
    "the recipe, Adafactor": {"model": SMALL, "train": {"optimizer": "adafactor"}},
    "bfloat16 weights": {"model": SMALL, "train": IN_BFLOAT16},
    "bfloat16 weights, frozen parts": {"model": SMALL, "train": IN_BFLOAT16 | FROZEN},
}
STEPS = 6


@pytest.fixture(scope="module")
def one_batch(scenes: Path) -> Path:
    """Four samples, so that every step is taken on the same."""
    lines = (scenes / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = scenes / "one_batch.jsonl"
    path.write_text("".join(lines[6:10]), encoding="utf-8")
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
def test_train__every_trainable_parameter_changes_and_the_loss_falls(
    precision: str, one_batch: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    sections = PRECISIONS[precision]
    if sections.get("train", {}).get("optimizer") == "stable_adamw":
        pytest.importorskip("optimi")
    settings = {"max_steps": STEPS, "lr_scheduler": "constant", "head_learning_rate": 2e-4, "save_steps": 100}
    data = {"train": str(one_batch), "teacher_ratio": 0.0}
    config = make_config(
        tmp_path / "run", **sections | {"data": data, "train": sections.get("train", {}) | settings}
    )
    trainer = create_trainer(config)
    detector = trainer.bundle.detector
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    before = parameters_of(detector)
    trainer.train()
    after = parameters_of(detector)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == trained
    keeps = "bfloat16" if config.train.weights == "bfloat16" else "float32"
    for name in trained:
        is_always_float32 = is_adapter(name) or group_of(name, QWEN2_5_VL) == "head"
        assert after[name].dtype == getattr(torch, "float32" if is_always_float32 else keeps), name
    losses = [row["loss/total"] for row in trainer.state.log_history if "loss/total" in row]
    assert losses[-1] < 0.87 * losses[0]


@pytest.mark.parametrize("precision", ["the recipe, frozen parts", "bfloat16 weights, frozen parts"])
def test_resume__gives_bitwise_the_uninterrupted_run(
    precision: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    sections = PRECISIONS[precision]
    if sections["train"].get("optimizer") == "stable_adamw":
        pytest.importorskip("optimi")
    settings = sections["train"] | {"max_steps": 4, "save_steps": 2, "evaluate": False}
    config = make_config(tmp_path / "run", **sections | {"train": settings})
    train(config)
    whole = weights_of(tmp_path / "run" / "final")
    for folder in ("checkpoint-4", "final"):
        shutil.rmtree(tmp_path / "run" / folder)
    train(config, resume=True)
    assert_same(weights_of(tmp_path / "run" / "final"), whole)
