"""How the weights in ``qwendet/assets`` were made; running it makes them again.

    python -m benchmarks.pretrain_tiny --family qwen2_5_vl --output runs/pretrain

Two stages from random weights, about 80 minutes on one core of an AMD EPYC. The first is ``qwendet train``
with ``examples/pretrain_tiny.yaml`` on 48,000 generated scenes, which teaches vision tower and head. The
second trains merger and language model, without the head, on 80,000 plainer scenes and with the auxiliary
losses of ``benchmarks/probes.py``, which teaches the text answers. The weights go into the package in half
precision.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import RandomSampler

from benchmarks.probes import Probes
from benchmarks.worlds import PRETRAIN, PRIMER
from qwendet.config.load import load_config, override_config
from qwendet.config.schema import Config
from qwendet.console.console import progress, setup
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import ASSETS
from qwendet.encoding.dataset import TrainingSamples
from qwendet.encoding.encode import EncodedSample
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


@dataclass(frozen=True)
class Recipe:
    """How one family's weights are made.

    Attributes:
        name: of the folder in ``ASSETS``.
        untrained: ``model.path`` of the architecture.
        scenes: numbers of them: of the first stage; of the second plain ones, and with a few crowds.
        images_only: the first stage has no texts, and the probes that ask image tokens.
        first: settings of the first stage that are not those of the file.
        second: of the second stage that are not in ``SECOND_STAGE``.
    """

    name: str
    untrained: str
    scenes: tuple[int, int, int]
    images_only: bool = False
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()


RECIPES = {
    "qwen2_5_vl": Recipe("tiny", "tiny-untrained", scenes=(48_000, 56_000, 24_000)),
    "qwen3_vl": Recipe(
        "tiny-qwen3-vl",
        "tiny-qwen3-vl-untrained",
        scenes=(32_000, 14_000, 2_000),
        images_only=True,
        first=(
            "train.max_steps=2400",
            "train.batch_size=8",
            "train.autocast=none",
            "detection.num_queries=32",
            "loss.lm_loss_weight=0",
        ),
        second=(
            "train.max_steps=5000",
            "train.batch_size=8",
            "train.autocast=none",
            "detection.enabled=true",
            "detection.num_queries=32",
            "data.allow=[]",
            "loss.lm_loss_weight=4.0",
            "train.vision_learning_rate=null",
            "train.head_learning_rate=1.2e-3",
        ),
    ),
}
FEW_CROWDS = replace(PRETRAIN, name="few_crowds", crowds=0.02)
ADAM_BETA2 = 0.98  # the gradients of a model that begins to look at its image change fast


class ImagesOnly(TrainingSamples):
    """Samples that end with their image.

    The head looks at no token after it, so it learns the same, at a tenth of the tokens.
    """

    def __getitem__(self, position: int) -> EncodedSample:
        """Encode a sample, and leave out its request and answer."""
        sample = super().__getitem__(position)
        end = sample.student_image_start + int(sample.mm_token_type_ids.sum())
        return replace(
            sample,
            input_ids=sample.input_ids[:end],
            mm_token_type_ids=sample.mm_token_type_ids[:end],
            student_assistant_spans=(),
        )


class ProbedTrainer(DetectionTrainer):
    """The trainer, with the probes' losses added.

    Args:
        bundle: the model.
        samples: the kind of data set.
    """

    def __init__(self, bundle: Bundle, samples: type[TrainingSamples] = TrainingSamples) -> None:
        config = bundle.config
        freeze_groups(bundle.detector, bundle.processor.family, config.train.group_learning_rates())
        self.probes = Probes(bundle)
        dataset = samples(config, bundle.encoder())
        arguments = training_arguments(config)
        arguments.adam_beta2 = ADAM_BETA2
        super().__init__(bundle, dataset, arguments, [ProgressReport()])

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, and the probes'."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.probes.zero_grad()  # the Trainer clears the gradients of its own model alone
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
    parser.add_argument("--family", choices=[*RECIPES], default="qwen2_5_vl")
    parser.add_argument("--start", type=Path, help="a checkpoint of the first stage, which is then left out")
    options = parser.parse_args()
    setup(debug=False, quiet=False)
    folder, recipe = options.output, RECIPES[options.family]
    write_data(folder / "data", recipe)
    shutil.copy("examples/pretrain_tiny.yaml", folder / "config.yaml")
    own = [f"model.path={recipe.untrained}"]
    start = options.start or first_stage(load_config(folder / "config.yaml", [*own, *recipe.first]), recipe)
    data = [f"data.{split}={folder / 'data' / split}.jsonl" for split in ("train", "val")]
    first = load(override_config(config_of_checkpoint(start), data), for_inference=True)
    whole = second_stage(load_config(folder / "config.yaml", [*own, *SECOND_STAGE, *recipe.second]), first)
    publish(whole, recipe.untrained, ASSETS / recipe.name)
    print(evaluate(whole).metrics)


def first_stage(config: Config, recipe: Recipe) -> Path:
    """Train vision tower and head; returns the last checkpoint."""
    if recipe.images_only:
        ProbedTrainer(load(config, for_inference=False), ImagesOnly).train()
        return Path(config.train.output_dir) / f"checkpoint-{config.train.max_steps}"
    final = train(config).final
    if final is None:
        raise SystemExit("the first stage was stopped; --start takes up a checkpoint of it")
    return final


def second_stage(config: Config, first: Bundle) -> Bundle:
    """Train the answers; where the head is left out, the first stage's is put back."""
    bundle = load(config, for_inference=False)
    vlm, head = bundle.detector.vlm, bundle.detector.head
    vlm.load_state_dict(first.detector.vlm.state_dict())
    if head is not None and first.detector.head is not None:
        head.load_state_dict(first.detector.head.state_dict())
    ProbedTrainer(bundle).train()
    return replace(first, detector=Qwen25VLWithDetection(vlm, head or first.detector.head))


def write_data(folder: Path, recipe: Recipe) -> None:
    """Write the scenes, unless they are there: a training file for each stage, and a validation file."""
    scenes, primers, crowded = recipe.scenes
    files = (
        (PRETRAIN, folder / "val.jsonl", 200, 2),
        (PRETRAIN, folder / "train.jsonl", scenes, 1),
        (PRIMER, folder / "primer.jsonl", primers, 3),
        (FEW_CROWDS, folder / "few_crowds.jsonl", crowded, 4),
    )
    for world, path, count, seed in files:
        if not path.exists():
            write_dataset(world, path, count, seed)
    parts = (folder / "primer.jsonl", folder / "few_crowds.jsonl")
    (folder / "second.jsonl").write_text("".join(part.read_text() for part in parts))


def publish(bundle: Bundle, untrained: str, target: Path) -> None:
    """Write a model in half precision, without the paths of the machine that trained it."""
    config = bundle.config
    config = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"path": untrained, "device": "auto", "dtype": "float16"}
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
