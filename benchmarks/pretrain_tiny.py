"""How the weights in ``qwendet/assets/tiny`` were made; running it makes them again.

    python -m benchmarks.pretrain_tiny --output runs/pretrain

Writes 48,000 generated scenes, trains ``examples/pretrain_tiny.yaml`` on them from random weights
(about 70 minutes on one core of an AMD EPYC), and puts the weights, in half precision, into the package.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from qwendet.config_file import load_config
from qwendet.console import progress, setup
from qwendet.data.shapes import PRETRAIN, write_dataset
from qwendet.files import atomic_folder
from qwendet.loader import config_of_checkpoint, load
from qwendet.model.checkpoint import save_checkpoint
from qwendet.model.tiny import TINY_FOLDER, UNTRAINED
from qwendet.run import train

TRAINING_SCENES = 48_000
VALIDATION_SCENES = 200


def main() -> None:
    """Generate, train, publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args()
    setup(debug=False, quiet=False)
    folder = options.output
    write_data(folder / "data")
    shutil.copy("examples/pretrain_tiny.yaml", folder / "config.yaml")
    config = load_config(folder / "config.yaml", options.overrides)
    summary = train(config, resume=options.resume, tracker=progress)
    print(summary.metrics)
    if summary.final is not None:
        publish(summary.final, TINY_FOLDER)


def write_data(folder: Path) -> None:
    """Write the scenes, unless they are there."""
    for split, count, seed in (("train", TRAINING_SCENES, 1), ("val", VALIDATION_SCENES, 2)):
        path = folder / f"{split}.jsonl"
        if path.exists():
            continue
        with progress(f"drawing {split}", count) as advance:
            write_dataset(PRETRAIN, path, count, seed, progress=lambda done: advance(done, ""))


def publish(checkpoint: Path, target: Path) -> None:
    """Write a checkpoint in half precision, without the paths of the machine that trained it."""
    bundle = load(config_of_checkpoint(checkpoint), for_inference=True)
    config = bundle.config
    config = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"path": UNTRAINED, "device": "auto", "dtype": "float16"}
            ),
            "data": config.data.model_copy(update={"train": None, "val": None}),
            "train": config.train.model_copy(update={"output_dir": "run"}),
        }
    )
    shutil.rmtree(target, ignore_errors=True)
    with atomic_folder(target) as folder:
        save_checkpoint(
            folder, bundle.detector.half(), bundle.processor, config, attn_implementation="sdpa", step=0
        )


if __name__ == "__main__":
    main()
