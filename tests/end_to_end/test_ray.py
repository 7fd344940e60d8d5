"""The example for Ray, on two local workers: each image once, found what the predictor finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.worlds import PRETRAIN
from qwendet import Predictor
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import ASSETS
from qwendet.inference.inputs import collect_samples


def test_ray_infer__predicts_each_image_once(repo_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed: pip install 'qwendet[ray]'")
    write_dataset(PRETRAIN, tmp_path / "scenes" / "val.jsonl", 11, seed=3)
    images, settings = tmp_path / "scenes", ["model.device=cpu", "model.dtype=float32"]
    script = repo_root / "examples" / "ray_infer.py"
    words = [script, ASSETS / "tiny", images, tmp_path / "found", "--workers", "2", "--batch-size", "4"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, *map(str, words), *chosen],
        env=os.environ | {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for file in (tmp_path / "found").glob("*.json") for line in file.read_text().splitlines()]
    found = {row["image"]: row for row in map(json.loads, lines)}
    predictor = Predictor.from_checkpoint(ASSETS / "tiny", overrides=settings)
    samples = collect_samples([images])
    assert len(lines) == len(found) == len(samples) == 11
    for prediction in predictor.predict(samples):
        (row, best) = found[Path(prediction.image).name], prediction.detections[0]
        assert row["detections"][0]["desc"] == best.desc
        assert row["detections"][0]["score"] == pytest.approx(best.score, abs=1e-4)
        assert row["detections"][0]["bbox_2d"] == pytest.approx(best.bbox_2d, abs=0.05)
