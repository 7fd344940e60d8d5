"""Open label sets: combinations of colour and shape that were never trained, and the memory of many labels.

    python -m benchmarks.open_labels [--output runs/open_labels] [--json FILE]

The tiny model learns 30 of 40 combinations, of eight colours and five shapes; each colour and each shape is
among them. On scenes of all 40 the head is asked for all 40: ``ap50_seen`` is the mean AP50 of the 30,
``ap50_unseen`` of the ten. ``memory_500_over_20`` is what torch allocates in training steps with a set of 500
labels over what it allocates with 20, where a request names 20 (measured as by ``benchmarks.memory``). A run
that is there is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.bccd import run
from benchmarks.memory import make_config, measure
from benchmarks.report import parser, report
from benchmarks.worlds import PRETRAIN, PRIMER, circle, square, triangle
from qwendet.demo.scenery import cross, star
from qwendet.demo.shapes import DEMO, World, write_dataset

SHAPES = (circle, square, triangle, star, cross)
HUES = {
    **PRETRAIN.hues, **DEMO.hues, "yellow": (52, 64), "pink": (306, 330),
}  # fmt: skip
ALL = tuple(f"{colour} {shape.__name__}" for colour in HUES for shape in SHAPES)
UNSEEN = (
    "orange circle", "purple circle", "yellow square", "pink square", "cyan triangle", "orange triangle",
    "red star", "blue star", "green cross", "cyan cross",
)  # fmt: skip
"""Two of each shape, one or two of each colour; the embedded model was not trained on one of them either."""
TRAINING_SCENES, TEST_SCENES = 6400, 400
LABELS_PER_REQUEST = 12
REQUESTED, MANY = 20, 500


def world(name: str, labels: Iterable[str]) -> World:
    """Plain scenes of these labels."""
    outlines = {shape.__name__: shape for shape in SHAPES}
    return replace(
        PRIMER, name=name, labels=tuple(labels), hues=HUES, outlines=outlines, vividness=(0.65, 1.0)
    )


def write_project(folder: Path, steps: int, seed: int) -> Path:
    """The config of the run, its scenes beside it."""
    seen = [label for label in ALL if label not in UNSEEN]
    write_dataset(world("seen", seen), folder / "train.jsonl", TRAINING_SCENES, seed=11)
    write_dataset(world("all", ALL), folder / "test.jsonl", TEST_SCENES, seed=12)
    settings: dict[str, Any] = {
        "data": {"train": "train.jsonl", "labels": seen, "labels_per_request": LABELS_PER_REQUEST},
        "train": {
            "max_steps": steps, "batch_size": 16, "learning_rate": 1e-3, "head_learning_rate": 1e-3,
            "weight_decay": 0.05, "save_steps": 250, "seed": seed, "output_dir": f"run-{seed}",
        },
    }  # fmt: skip
    config = folder / f"config-{seed}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


def ap50(folder: Path, steps: int, seed: int) -> dict[str, float]:
    """Train, ask for all labels, and average over those that were trained and those that were not."""
    results = folder / f"results-{seed}.json"
    if not results.is_file():
        resume = ["--resume"] if any(folder.glob(f"run-{seed}/checkpoint-*")) else []
        run("train", str(write_project(folder, steps, seed)), *resume)
        labels = f"data.labels=[{', '.join(ALL)}]"
        final, test = folder / f"run-{seed}" / "final", folder / "test.jsonl"
        run("eval", str(final), str(test), "--mode", "head", "--set", labels, "--json", str(results))
    (found,) = json.loads(results.read_text(encoding="utf-8"))["runs"]
    scores = {label["label"]: label["AP50"] or 0.0 for label in found["labels"]}
    return {
        "ap50_seen": fmean(score for label, score in scores.items() if label not in UNSEEN),
        "ap50_unseen": fmean(scores[label] for label in UNSEEN),
    }


def allocated(count: int) -> int:
    """Peak bytes of two training steps with so many labels in the set."""
    labels = [*DEMO.labels, *(f"object {number:03}" for number in range(count))][:count]
    with TemporaryDirectory() as folder:
        data = {"labels": labels, "labels_per_request": REQUESTED}
        return measure(make_config(Path(folder), "tiny", 8, data=data))[1]


def main() -> None:
    """Train, evaluate, and measure memory."""
    arguments = parser(__doc__)
    arguments.add_argument("--output", type=Path, default=Path("runs/open_labels"))
    arguments.add_argument("--steps", type=int, default=400)
    arguments.add_argument("--seeds", type=int, default=1)
    options = arguments.parse_args()
    folder: Path = options.output.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found = [ap50(folder, options.steps, seed) for seed in range(options.seeds)]
    few, many = allocated(REQUESTED), allocated(MANY)
    figures = {name: fmean(one[name] for one in found) for name in found[0]}
    report(
        figures
        | {"unseen_over_seen": figures["ap50_unseen"] / figures["ap50_seen"]}
        | {"memory_500_over_20": many / few, "mib_500": many / 2**20, "mib_20": few / 2**20}
        | {"seeds": options.seeds, "steps": options.steps},
        options.json,
    )


if __name__ == "__main__":
    main()
