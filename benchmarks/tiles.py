"""Small objects in large scenes, whole and in windows: head AP of the tiny model, trained on windows.

    python -m benchmarks.tiles --json FILE [--output runs/tiles] [--seed 1]

Scenes of 2,048 pixels with 60 objects of 24 to 48 pixels; images that fit have 224 pixels, and one to three
such objects. Does what a user would: ``qwendet data tile``, ``qwendet train``, ``qwendet eval`` without and
with ``--tiles auto``.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.bccd import run
from benchmarks.report import parser, report
from qwendet.demo.shapes import DEMO, World, write_dataset

SCENE, FITTING = 2048, 224
OBJECT = (27, 44)
"""Diameters in pixels; the boxes of turned and stretched ones have sides of 24 to 48."""


def world(side: int, counts: tuple[float, ...]) -> World:
    """Images of a side, with objects of one size in pixels."""
    low, high = OBJECT
    size = (low / side, high / side)
    return replace(DEMO, name="tiles", side_px=(side, side), size=size, counts=counts, cuts=0.0)


CONFIG = """\
model:
  path: tiny
data:
  train: data/train.jsonl
train:
  output_dir: run
  seed: {seed}
  max_steps: {steps}
  batch_size: 8
  learning_rate: 1.0e-3
  head_learning_rate: 1.0e-3
  weight_decay: 0.05
"""


def average_precision(folder: Path, data: str, *tiles: str) -> float:
    """Head AP of the trained model."""
    results = folder / f"{data}{'_tiled' * bool(tiles)}.json"
    test = folder / data / "test.jsonl"
    run("eval", str(folder / "run" / "final"), str(test), "--json", str(results), *tiles)
    record = json.loads(results.read_text(encoding="utf-8"))
    return float(record["runs"][0]["metrics"]["AP"])


def main() -> None:
    """Draw, cut, train, measure."""
    arguments = parser(__doc__)
    arguments.add_argument("--output", type=Path, default=Path("runs/tiles"))
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--scenes", type=int, default=20)
    arguments.add_argument("--test-scenes", type=int, default=6)
    options = arguments.parse_args()
    began, folder = time.perf_counter(), options.output.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    scenes, fitting = world(SCENE, (0.0,) * 60 + (1.0,)), world(FITTING, (0.0, 1 / 3, 1 / 3, 1 / 3))
    write_dataset(scenes, folder / "scenes" / "train.jsonl", options.scenes, 1)
    write_dataset(scenes, folder / "large" / "test.jsonl", options.test_scenes, 2)
    write_dataset(fitting, folder / "fit" / "test.jsonl", 200, 3)
    (folder / "config.yaml").write_text(
        CONFIG.format(steps=options.steps, seed=options.seed), encoding="utf-8"
    )
    run("data", "tile", str(folder / "scenes"), str(folder / "data"), "--tiles", str(FITTING))
    run("train", str(folder / "config.yaml"))
    figures = {
        "ap_whole": average_precision(folder, "large"),
        "ap_tiled": average_precision(folder, "large", "--tiles", "auto"),
        "ap_fit_whole": average_precision(folder, "fit"),
        "ap_fit_tiled": average_precision(folder, "fit", "--tiles", "auto"),
    }
    more = {"scenes": options.test_scenes, "steps": options.steps, "seed": options.seed}
    more["seconds"] = time.perf_counter() - began
    report(figures | more, options.json)


if __name__ == "__main__":
    main()
