"""How the weights in ``qwendet/assets/tiny`` were made; running it makes them again.

    python -m benchmarks.pretrain_tiny --output runs/pretrain

Two stages from random weights, about 80 minutes on one core of an AMD EPYC. The first is ``qwendet train``
with ``examples/pretrain_tiny.yaml`` on 48,000 generated scenes, which teaches vision tower and head. The
second trains merger and language model, without the head, on 80,000 plainer scenes and with the auxiliary
losses of ``benchmarks/probes.py``, which teaches the text answers. The weights go into the package in half
precision.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import RandomSampler

from benchmarks.probes import Probes
from qwendet.config.load import load_config
from qwendet.config.schema import Config
from qwendet.console.console import progress, setup
from qwendet.demo.shapes import PRETRAIN, PRIMER, World, write_dataset
from qwendet.demo.tiny import TINY_FOLDER, UNTRAINED
from qwendet.encoding.dataset import TrainingSamples
from qwendet.files import atomic_folder
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.loading.checkpoint import save_checkpoint
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.progress import shown_by
from qwendet.train import evaluate, train
from qwendet.training.arguments import training_arguments
from qwendet.training.callbacks import ProgressReport
from qwendet.training.param_groups import freeze_groups
from qwendet.training.trainer import DetectionTrainer

SECOND_STAGE = (
    "data.train=data/second.jsonl",
    "detection.enabled=false",
    "data.allow=[config.detection.off_with_boxes]",
    "train.output_dir=run2",
    "train.max_steps=5000",
    "train.vision_learning_rate=0",
    "train.learning_rate=1.2e-3",
)
FEW_CROWDS = replace(PRETRAIN, name="few_crowds", crowds=0.02)
ADAM_BETA2 = 0.98  # the gradients of a model that begins to look at its image change fast


class ProbedTrainer(DetectionTrainer):
    """The trainer, with the probes' losses added.

    Args:
        config: of the second stage.
        start: checkpoint of the first.
    """

    def __init__(self, config: Config, start: Path) -> None:
        bundle = load(config, for_inference=False)
        self.first = load(config_of_checkpoint(start), for_inference=True)
        bundle.detector.vlm.load_state_dict(self.first.detector.vlm.state_dict())
        freeze_groups(bundle.detector, bundle.processor.family, config.train.group_learning_rates())
        self.probes = Probes(bundle)
        dataset = TrainingSamples(bundle.config, bundle.encoder())
        arguments = training_arguments(bundle.config)
        arguments.adam_beta2 = ADAM_BETA2
        super().__init__(bundle, dataset, arguments, [ProgressReport()])

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, and the probes'."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        probed = self.probes(inputs)
        self.step_log.add({"probes": probed}, [])
        return loss + probed

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:
        """Batches of all lengths: those of one length are all crowds or all empty, and teach badly."""
        generator = torch.Generator().manual_seed(self.args.seed)
        samples: Any = self.train_dataset
        return RandomSampler(samples, generator=generator)

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
    """Generate, train twice, publish, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--start", type=Path, help="a checkpoint of the first stage, which is then left out")
    options = parser.parse_args()
    setup(debug=False, quiet=False)
    folder = options.output
    write_data(folder / "data")
    shutil.copy("examples/pretrain_tiny.yaml", folder / "config.yaml")
    start = options.start or train(load_config(folder / "config.yaml")).final
    if start is None:
        raise SystemExit("the first stage was stopped; --start takes up a checkpoint of it")
    trainer = ProbedTrainer(load_config(folder / "config.yaml", SECOND_STAGE), start)
    trainer.train()
    whole = replace(trainer.first, detector=joined(trainer))
    publish(whole, TINY_FOLDER)
    print(evaluate(whole, folder / "run2").metrics)


def joined(trainer: ProbedTrainer) -> Qwen25VLWithDetection:
    """The second stage's model with the first one's head."""
    return Qwen25VLWithDetection(trainer.bundle.detector.vlm, trainer.first.detector.head)


def write_data(folder: Path) -> None:
    """Write the scenes, unless they are there: a training file for each stage, and a validation file."""
    if (folder / "second.jsonl").exists():
        return
    draw(PRETRAIN, folder / "train.jsonl", 48_000, 1)
    draw(PRETRAIN, folder / "val.jsonl", 200, 2)
    parts = (
        draw(PRIMER, folder / "primer.jsonl", 56_000, 3),
        draw(FEW_CROWDS, folder / "few_crowds.jsonl", 24_000, 4),
    )
    (folder / "second.jsonl").write_text("".join(part.read_text() for part in parts))


def draw(world: World, path: Path, count: int, seed: int) -> Path:
    """Write scenes of one world."""
    with progress(f"drawing {path.stem}", count) as advance:
        return write_dataset(world, path, count, seed, progress=lambda done: advance(done, ""))


def publish(bundle: Bundle, target: Path) -> None:
    """Write a model in half precision, without the paths of the machine that trained it."""
    config = bundle.config
    config = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"path": UNTRAINED, "device": "auto", "dtype": "float16"}
            ),
            "data": config.data.model_copy(update={"train": None, "val": None}),
            "train": config.train.model_copy(update={"output_dir": "run", "autocast": "auto"}),
        }
    )
    shutil.rmtree(target, ignore_errors=True)
    with atomic_folder(target) as folder:
        save_checkpoint(
            folder, bundle.detector.half(), bundle.processor, config, attn_implementation="sdpa", step=0
        )
    bundle.detector.float()


if __name__ == "__main__":
    with shown_by(progress):
        main()
