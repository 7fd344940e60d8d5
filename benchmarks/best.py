"""What the best checkpoint and the moving average bring: blood cells or shapes by the tiny model, head AP.

    python -m benchmarks.best ../shared/data/bccd/BCCD --output runs/best [--seeds 0 1 2]
    python -m benchmarks.best shapes --output runs/best-shapes --steps 300

One run a seed has both ways, since the average (``train.ema``) changes nothing in training:
``checkpoint-N`` holds the weights themselves, ``final`` and ``best`` their average. The best of either is
chosen by AP of the validation split, every 100 steps; all are measured on the test split. A run that is
there is not repeated.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from benchmarks.augment import head_ap, project, train
from benchmarks.report import parser, report

EVERY = 100


def measure(config: Path, seed: int, steps: int, decay: float) -> dict[str, float]:
    """Train and evaluate one run."""
    output, data = config.parent / f"run-{seed}", config.parent / "data"
    settings = [
        f"train.max_steps={steps}", "train.batch_size=4", f"train.seed={seed}", f"train.save_steps={EVERY}",
        f"train.eval_steps={EVERY}", "train.best_metric=head/AP", f"train.ema={{decay: {decay}}}",
        f"train.save_total_limit={steps // EVERY}",
    ]  # fmt: skip
    if not (output / "final").is_dir():
        train(config, output, settings)
    validated = {
        step: head_ap(output / f"checkpoint-{step}", data / "val.jsonl", output / f"val-{step}.json")
        for step in range(EVERY, steps + 1, EVERY)
    }
    best = max(validated, key=validated.__getitem__)
    chosen = {
        "last": f"checkpoint-{steps}", "best": f"checkpoint-{best}",
        "average": "final", "best_average": "best",
    }  # fmt: skip
    return {
        f"ap_{way}": head_ap(output / folder, data / "test.jsonl", output / f"test-{folder}.json")
        for way, folder in chosen.items()
    }


def main() -> None:
    """Train from each seed."""
    arguments = parser(__doc__)
    arguments.add_argument("data", help="the folder with Annotations and JPEGImages, or: shapes")
    arguments.add_argument("--output", type=Path, default=Path("runs/best"))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--decay", type=float, default=0.999)
    options = arguments.parse_args()
    config = project(options.output, options.data)
    found = {seed: measure(config, seed, options.steps, options.decay) for seed in options.seeds}
    means = {name: fmean(own[name] for own in found.values()) for name in next(iter(found.values()))}
    single = {f"{name}_{seed}": value for seed, own in found.items() for name, value in own.items()}
    report(means | single | {"steps": options.steps, "decay": options.decay}, options.json)


if __name__ == "__main__":
    main()
