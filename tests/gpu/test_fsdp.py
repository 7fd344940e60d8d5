"""FSDP2 by `accelerate launch` on the GPUs that are here: its checkpoint is that of the run without it.

With accelerate's own defaults and the quick preflight; tests/end_to_end/test_fsdp.py is the CPU's part.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.inference.predictor import Predictor
from qwendet.loading.manifest import read_manifest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

FSDP2 = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
    },
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 1,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    scenes = write_dataset(DEMO, tmp_path / "train.jsonl", 8, seed=1)
    val = write_dataset(DEMO, tmp_path / "val.jsonl", 2, seed=2)
    settings = {
        "model": {"path": "tiny-untrained", "dtype": "float32", "attn_implementation": "sdpa"},
        "data": {"train": str(scenes), "val": str(val), "labels": list(DEMO.labels)},
        "detection": {"hidden_size": 64, "num_layers": 1, "num_heads": 4},
        "train": {
            "max_steps": 3,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "save_steps": 2,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def train(config: Path, run: Path, *launcher: str, batch_size: int = 4, resume: bool = False) -> None:
    settings = ["--set", f"train.output_dir={run}", "--set", f"train.batch_size={batch_size}"]
    words = ["qwendet", "train", str(config), *settings, *["--resume"] * resume]
    command = [sys.executable, "-m", *launcher, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_fsdp2__saves_what_one_unsharded_process_saves_and_resumes_from_it(
    config: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "fsdp2.yaml"
    settings.write_text(yaml.safe_dump(FSDP2), encoding="utf-8")
    ranks = 2 if torch.cuda.device_count() > 1 else 1
    command = ("--config_file", str(settings), "--num_processes", str(ranks))
    launcher = ("accelerate.commands.launch", *command, "-m")
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    train(config, plain)
    train(config, sharded, *launcher, batch_size=4 // ranks)
    ours, theirs = (read_manifest(run / "final") for run in (sharded, plain))
    assert {name: (p.shape, p.dtype) for name, p in ours.parameters.items()} == {
        name: (p.shape, p.dtype) for name, p in theirs.parameters.items()
    }
    for file in sorted((plain / "final").rglob("*.safetensors")):
        found = load_file(sharded / file.relative_to(plain))
        for name, tensor in load_file(file).items():
            # Kernels on a GPU add in no fixed order, and AdamW makes a step of the noise of a tiny gradient.
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4, msg=name)
    Predictor.from_checkpoint(sharded / "final")
    assert (sharded / "eval" / "predictions.jsonl").is_file()
    assert (sharded / "checkpoint-2" / "resume.json").is_file()
    for name in ("final", "checkpoint-3"):
        (sharded / name).rename(tmp_path / f"{name}-uninterrupted")
    train(config, sharded, *launcher, batch_size=4 // ranks, resume=True)
    assert read_manifest(sharded / "final").step == 3
