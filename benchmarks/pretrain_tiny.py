"""How the weights in ``qwendet/assets/tiny`` were made; running it makes them again.

    python -m benchmarks.pretrain_tiny --output runs/pretrain

Writes 72,000 generated scenes, trains ``examples/pretrain_tiny.yaml`` on them from random weights with the
auxiliary losses of ``benchmarks/probes.py`` (about an hour on one core of an AMD EPYC), and puts the
weights, in half precision, into the package.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.probes import Probes
from qwendet.callbacks import ProgressReport
from qwendet.config import Config
from qwendet.config_file import load_config
from qwendet.console import progress, setup
from qwendet.data.dataset import TrainingSamples
from qwendet.data.shapes import PRETRAIN, PRIMER, World, write_dataset
from qwendet.files import atomic_folder
from qwendet.loader import load
from qwendet.model.checkpoint import save_checkpoint
from qwendet.model.tiny import TINY_FOLDER, UNTRAINED
from qwendet.run import evaluate
from qwendet.training import DetectionTrainer, training_arguments

# World, number of scenes, seed.
SCENES: tuple[tuple[World, int, int], ...] = ((PRETRAIN, 40_000, 1), (PRIMER, 32_000, 3))
VALIDATION_SCENES = 200
PROBE_WEIGHT = 1.0


class ProbedTrainer(DetectionTrainer):
    """The trainer, with the probes' losses added."""

    def __init__(self, config: Config) -> None:
        bundle = load(config, for_inference=False)
        self.probes = Probes(bundle)
        dataset = TrainingSamples(bundle.config, bundle.encoder())
        super().__init__(bundle, dataset, training_arguments(bundle.config), [ProgressReport(progress)])

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, and the probes'."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        probed = self.probes(inputs)
        self._step_terms["probes"] = probed.detach()
        return loss + PROBE_WEIGHT * probed

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Train the probes too."""
        first = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if first:
            rate = self.bundle.config.train.learning_rate
            group = {"params": list(self.probes.parameters()), "lr": rate, "weight_decay": 0.0}
            optimizer.add_param_group(group | {"name": "probes"})
        return optimizer


def main() -> None:
    """Generate, train, evaluate, publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args()
    setup(debug=False, quiet=False)
    folder = options.output
    write_data(folder / "data")
    shutil.copy("examples/pretrain_tiny.yaml", folder / "config.yaml")
    config = load_config(folder / "config.yaml", options.overrides)
    trainer = ProbedTrainer(config)
    trainer.train()
    publish(trainer, TINY_FOLDER)
    print(evaluate(trainer.bundle, folder / "run", progress))


def write_data(folder: Path) -> None:
    """Write the scenes, unless they are there: one training file out of two worlds, and a validation file."""
    if (folder / "train.jsonl").exists():
        return
    parts = [draw(world, folder / f"{world.name}.jsonl", count, seed) for world, count, seed in SCENES]
    draw(PRETRAIN, folder / "val.jsonl", VALIDATION_SCENES, 2)
    (folder / "train.jsonl").write_text("".join(part.read_text() for part in parts))


def draw(world: World, path: Path, count: int, seed: int) -> Path:
    """Write scenes of one world."""
    with progress(f"drawing {path.stem}", count) as advance:
        return write_dataset(world, path, count, seed, progress=lambda done: advance(done, ""))


def publish(trainer: DetectionTrainer, target: Path) -> None:
    """Write the model in half precision, without the paths of the machine that trained it."""
    bundle = trainer.bundle
    config = bundle.config
    config = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"path": UNTRAINED, "device": "auto", "dtype": "float16"}
            ),
            "data": config.data.model_copy(update={"train": None, "val": None}),
            "train": config.train.model_copy(update={"output_dir": "run"}),
            "infer": config.infer.model_copy(update={"mode": "auto"}),
        }
    )
    shutil.rmtree(target, ignore_errors=True)
    with atomic_folder(target) as folder:
        save_checkpoint(
            folder, bundle.detector.half(), bundle.processor, config, attn_implementation="sdpa", step=0
        )
    bundle.detector.float()


if __name__ == "__main__":
    main()
