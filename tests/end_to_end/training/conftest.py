"""Scenes to train on, their config, and one run that came to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.train import RunSummary, train
from tests.end_to_end.training.runs import STEPS, MakeConfig


@pytest.fixture(scope="package")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.jsonl`: 20 images, one a negative, one with a teacher of its own; `val.jsonl`: 6 images."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(DEMO, folder / "val.jsonl", 6, seed=1)
    path = write_dataset(DEMO, folder / "train.jsonl", 20, seed=0)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records[3]["objects"] = []
    records[5] = {"teachers": [records[0]], "student": records[5]}
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


@pytest.fixture(scope="package")
def make_config(scenes: Path) -> MakeConfig:
    """Five batches an epoch, so that six steps see two; arguments after the folder are sections."""

    def make(output_dir: Path, **sections: dict[str, Any]) -> Config:
        values: dict[str, dict[str, Any]] = {
            "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
            "data": {
                "train": str(scenes / "train.jsonl"),
                "val": str(scenes / "val.jsonl"),
                "labels": list(DEMO.labels),
                "teacher_ratio": 0.5,
            },
            "detection": {"hidden_size": 128, "num_layers": 2, "num_heads": 4},
            "loss": {"teacher_loss_weight": 0.3, "lm_loss_weight": 0.7, "detection_loss_weight": 1.5},
            "train": {
                "output_dir": str(output_dir),
                "max_steps": STEPS,
                "batch_size": 4,
                "learning_rate": 1.0e-3,
                "head_learning_rate": 5.0e-4,
                "save_steps": 3,
                "save_total_limit": 5,
                "logging_steps": 1,
                "preflight": "off",
            },
            "infer": {"max_new_tokens": 16},
        }
        for name, section in sections.items():
            values[name] = values[name] | section
        return build_config(values, "test")

    return make


@pytest.fixture(scope="package")
def finished(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """A run that came to its end, preflight included; read only."""
    return train(make_config(tmp_path_factory.mktemp("runs") / "run", train={"preflight": "quick"}))
