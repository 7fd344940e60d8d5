"""The order of training samples: shuffled by seed and epoch alone, batches of similar length."""

from __future__ import annotations

import random
from collections.abc import Iterator

from qwendet.encoding.dataset import TrainingSamples

BATCHES_PER_GROUP = 50


class EpochOrder:
    """A sampler: neighbours have similar lengths, so batches hold little padding.

    Samples are shuffled, sorted by length within groups of 50 batches, and the batches shuffled. They are
    set to each new epoch here: accelerate passes it on to the sampler or to the dataset, not to both.
    """

    def __init__(self, samples: TrainingSamples, batch_size: int, seed: int) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch
        self.samples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}/{self.epoch}")
        lengths = self.samples.lengths()
        order = list(range(len(lengths)))
        generator.shuffle(order)
        group = BATCHES_PER_GROUP * self.batch_size
        batches = []
        for start in range(0, len(order), group):
            similar = sorted(order[start : start + group], key=lambda index: lengths[index])
            batches += [similar[at : at + self.batch_size] for at in range(0, len(similar), self.batch_size)]
        rest = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        return (index for batch in batches + rest for index in batch)
