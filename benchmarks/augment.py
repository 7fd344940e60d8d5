"""What augmentation brings: blood cells (BCCD) or shapes by the tiny model, head AP of the test split.

    python -m benchmarks.augment ../shared/data/bccd/BCCD --output runs/augment [--preset strong] [--seeds 3]
    python -m benchmarks.augment shapes --output runs/augment-shapes --steps 300

Each run is what a user would do: ``qwendet init --data``, ``qwendet train`` for 600 steps of 4 images,
``qwendet eval`` on the test split. A run that is there is not repeated, and one that was cut off goes on.
``shapes`` are generated scenes of the demo: 60 to train on, 40 to validate, 200 to test.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import get_args

from benchmarks.bccd import run
from benchmarks.report import parser, report
from qwendet.config.augment_steps import Preset
from qwendet.demo.shapes import DEMO, write_dataset

SCENES = {"train": 60, "val": 40, "test": 200}


def measure(config: Path, preset: str, seed: int, settings: list[str]) -> float:
    """Train and evaluate one run; its head AP on the test split."""
    output = config.parent / f"{preset}-{seed}"
    results = output.with_suffix(".json")
    if not results.is_file():
        train(config, output, [f"data.augment={preset}", f"train.seed={seed}", *settings])
    return head_ap(output / "final", config.parent / "data" / "test.jsonl", results)


def train(config: Path, output: Path, settings: list[str]) -> None:
    """Train, or go on where a run was cut off."""
    resume = ["--resume"] if any(output.glob("checkpoint-*")) else []
    own = [f"train.output_dir={output}", *settings]
    run("train", str(config), *resume, *(word for setting in own for word in ("--set", setting)))


def head_ap(checkpoint: Path, samples: Path, results: Path) -> float:
    """AP of the head, by a file that is not made again."""
    if not results.is_file():
        run("eval", str(checkpoint), str(samples), "--mode", "head", "--json", str(results))
    record = json.loads(results.read_text(encoding="utf-8"))
    return float(next(item["metrics"]["AP"] for item in record["runs"] if item["source"] == "head"))


def project(folder: Path, data: str) -> Path:
    """What ``qwendet init`` makes of blood cells, or of shapes; its config."""
    config = folder.absolute() / "config.yaml"
    if not config.is_file():
        if data == "shapes":
            data = str(config.parent / "data")
            for seed, (split, count) in enumerate(SCENES.items(), start=21):
                write_dataset(DEMO, Path(data, f"{split}.jsonl"), count, seed=seed)
        run("init", str(config.parent), "--model", "tiny", "--data", data)
    return config


def main() -> None:
    """Train both ways from each seed."""
    arguments = parser(__doc__)
    arguments.add_argument("data", help="the folder with Annotations and JPEGImages, or: shapes")
    arguments.add_argument("--output", type=Path, default=Path("runs/augment"))
    arguments.add_argument("--preset", choices=get_args(Preset), default="strong")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = arguments.parse_args()
    config = project(options.output, options.data)
    settings = [f"train.max_steps={options.steps}", "train.batch_size=4", *options.overrides]
    found = {
        preset: [measure(config, preset, seed, settings) for seed in range(options.seeds)]
        for preset in ("off", options.preset)
    }
    report(
        {
            "ap_off": fmean(found["off"]),
            "ap_preset": fmean(found[options.preset]),
            "preset": options.preset,
            "seeds": options.seeds,
            "steps": options.steps,
            **{f"ap_{preset}_{seed}": ap for preset, aps in found.items() for seed, ap in enumerate(aps)},
        },
        options.json,
    )


if __name__ == "__main__":
    main()
