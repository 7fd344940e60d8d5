"""A few steps of the real training loop on the first samples: no checkpoint, no log files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwendet.encoding.encode import EncodedSample
from qwendet.loader import Bundle
from qwendet.training.arguments import training_arguments
from qwendet.training.trainer import DetectionTrainer


class FewSamples:
    """Encoded samples as a training set, all of them in every epoch."""

    def __init__(self, encoded: Sequence[EncodedSample]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, position: int) -> EncodedSample:
        return self.encoded[position]

    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(sample.input_ids) for sample in self.encoded]

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is alike."""


def short_trainer(
    bundle: Bundle, encoded: Sequence[EncodedSample], steps: int, folder: Path
) -> DetectionTrainer:
    """A trainer whose every step is all of the samples, at the config's rates without their course."""
    batch_size = min(bundle.config.train.batch_size, len(encoded))
    train = {
        "output_dir": str(folder),
        "max_steps": steps,
        "batch_size": batch_size,
        "gradient_accumulation_steps": -(-len(encoded) // batch_size),
        "lr_scheduler": "constant",
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "report_to": (),
    }
    config = bundle.config.model_copy(
        update={
            "train": bundle.config.train.model_copy(update=train),
            "data": bundle.config.data.model_copy(update={"num_workers": 0}),
        }
    )
    arguments = training_arguments(config)
    arguments.save_strategy = "no"
    own = Bundle(bundle.processor, config, detector=bundle.detector)
    return DetectionTrainer(own, FewSamples(encoded), arguments, [])  # type: ignore[arg-type]
