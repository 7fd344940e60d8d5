"""A container's small /dev/shm: training with worker processes works or says what to do, and never waits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwendet.demo.shapes import DEMO, write_dataset

ENDS_WITHIN = 300
"""Seconds: seven on two free cores; what waits for ever takes more on a busy machine, too."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(DEMO, folder / "train.jsonl", 24, seed=1)
    labels = ", ".join(DEMO.labels)
    (folder / "config.yaml").write_text(
        "model: {path: tiny-untrained, device: cpu, dtype: float32}\n"
        f"data: {{train: train.jsonl, labels: [{labels}], num_workers: 2}}\n"
        "detection: {hidden_size: 64, num_layers: 1, num_heads: 4}\n"
        "train: {max_steps: 4, batch_size: 6, learning_rate: 0.001, preflight: 'off'}\n"
    )
    return folder / "config.yaml"


def train_with(size: str, config: Path, run: Path) -> subprocess.CompletedProcess[str]:
    """Train in a mount namespace whose /dev/shm has this size."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("unshare -rm may not mount a tmpfs here")
    command = [sys.executable, "-m", "qwendet", "train", str(config), "--set", f"train.output_dir={run}"]
    words = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=ENDS_WITHIN, check=False)


@pytest.mark.parametrize(
    ("size", "what"),
    [
        ("64k", "worker processes (data.num_workers) need shared memory, and it holds 65,536 bytes"),
        ("1100k", "a batch of a worker process does not fit into the shared memory, and it holds 1,126,400"),
    ],
)
def test_train__too_small_shared_memory_is_told(config: Path, tmp_path: Path, size: str, what: str) -> None:
    ending = train_with(size, config, tmp_path / "run")
    assert ending.returncode == 3, ending.stderr
    assert what in ending.stderr
    for words in ("/dev/shm", "--shm-size", "data.num_workers: 0"):
        assert words in ending.stderr
    assert "Traceback" not in ending.stderr


def test_train__shared_memory_of_docker_suffices_for_small_batches(config: Path, tmp_path: Path) -> None:
    ending = train_with("64m", config, tmp_path / "run")
    assert ending.returncode == 0, ending.stderr
    assert (tmp_path / "run" / "final").is_dir()
