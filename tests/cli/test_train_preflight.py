"""``train.preflight``: full passes a sound run and refuses a planted bug; off is said and recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwendet.loading.manifest import read_manifest
from qwendet.model.detector import Qwen25VLWithDetection
from tests.commands import Ending, Qwendet
from tests.planted.bugs_loss_model import cross_entropy
from tests.planted.in_code import replacing

plant = replacing(Qwen25VLWithDetection, "_cross_entropy", cross_entropy(label_smoothing=0.01))


def train(qwendet: Qwendet, repo_root: Path, folder: Path, preflight: str) -> Ending:
    settings = {
        "model.device": "cpu",
        "data.max_pixels": 6272,
        "data.allow": "[config.images.small_objects]",
        "train.output_dir": folder,
        "train.max_steps": 1,
        "train.evaluate": "false",
        "train.preflight": preflight,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return qwendet("train", repo_root / "examples" / "tiny.yaml", *words)


@pytest.mark.slow
def test_full__trains_what_passes(qwendet: Qwendet, repo_root: Path, tmp_path: Path) -> None:
    ending = train(qwendet, repo_root, tmp_path / "run", "full")
    assert ending.code == 0
    assert "preflight (full)" in ending.err
    assert read_manifest(tmp_path / "run" / "final").config.train.preflight == "full"


@pytest.mark.slow
def test_full__refuses_a_planted_bug(
    qwendet: Qwendet, repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    ending = train(qwendet, repo_root, tmp_path / "run", "full")
    assert ending.code == 1
    assert "differ from the base model's" in ending.err
    assert not list(tmp_path.glob("run/*"))


def test_off__is_printed_and_recorded(
    qwendet: Qwendet, repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    ending = train(qwendet, repo_root, tmp_path / "run", "off")
    assert ending.code == 0
    assert "train.preflight is off" in ending.err
    assert read_manifest(tmp_path / "run" / "final").config.train.preflight == "off"
