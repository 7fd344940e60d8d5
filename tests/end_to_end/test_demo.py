"""The demo in small: what it leaves can be scored by pycocotools and looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import demo

SCENES = ["--train-scenes", "16", "--test-scenes", "4"]
STEPS = ["--set", "train.max_steps=2", "--set", "train.batch_size=4"]


@pytest.mark.parametrize("family", demo.MODELS)
def test_demo__leaves_coco_files_and_pictures(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, figures_file = tmp_path / "demo", tmp_path / "figures.json"
    words = ["--family", family, "--output", str(folder), "--json", str(figures_file), *SCENES, *STEPS]
    monkeypatch.setattr("sys.argv", ["benchmarks.demo", *words])
    demo.main()
    truth = COCO(str(folder / "eval" / "ground_truth.coco.json"))
    results = truth.loadRes(str(folder / "eval" / "predictions.coco.json"))
    evaluation = COCOeval(truth, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = json.loads(figures_file.read_text(encoding="utf-8"))
    assert figures["after/head/AP50"] == pytest.approx(float(evaluation.stats[1]), abs=1e-9)
    assert 0.0 <= figures["after/text/parse_rate"] <= 1.0
    pictures = sorted((folder / "pictures").glob("*.png"))
    assert len(pictures) == 4
    with Image.open(pictures[0]) as picture:
        assert min(picture.size) >= 448
