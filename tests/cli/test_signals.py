"""Ctrl-C and SIGTERM end `qwendet train` with 130 and 143, and leave what --resume continues."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qwendet.demo.shapes import DEMO, write_dataset
from tests.commands import Qwendet

STARTED = "training: "


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_dataset(DEMO, tmp_path / "train.jsonl", 8, seed=1)
    path = tmp_path / "config.yaml"
    settings = {
        "model": {"path": "tiny"},
        "data": {"train": "train.jsonl"},
        "train": {"max_steps": 100, "batch_size": 2, "preflight": "off"},
    }
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_train__a_signal_ends_it_with_a_checkpoint(
    config: Path, number: signal.Signals, code: int, qwendet: Qwendet
) -> None:
    command = [sys.executable, "-m", "qwendet", "train", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith(STARTED):
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == code, "".join(lines) + rest
    assert "a checkpoint was saved" in rest
    assert "Traceback" not in rest
    (checkpoint,) = (config.parent / "run").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    resumed = qwendet("train", config, "--resume", "--set", f"train.max_steps={step + 1}")
    assert resumed.code == 0, resumed.err
    assert (config.parent / "run" / "final").is_dir()
