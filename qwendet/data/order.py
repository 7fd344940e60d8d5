"""The order of training samples: shuffled by seed and epoch alone, batches of similar length."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

BATCHES_PER_GROUP = 50


class EpochOrder:
    """A sampler: neighbours have similar lengths, so batches hold little padding.

    Samples are shuffled, sorted by length within groups of 50 batches, and the batches shuffled.

    Args:
        lengths: a number for each sample that grows with its tokens.
        batch_size: samples that will form a batch.
        seed: ``train.seed``.
        on_epoch: told of each new epoch. The dataset needs to hear of it here, because accelerate
            passes the epoch on to the sampler or to the dataset, but not to both.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, on_epoch: Callable[[int], None]
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.on_epoch = on_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch
        self.on_epoch(epoch)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        group = BATCHES_PER_GROUP * self.batch_size
        batches = []
        for start in range(0, len(order), group):
            similar = sorted(order[start : start + group], key=lambda index: self.lengths[index])
            batches += [similar[at : at + self.batch_size] for at in range(0, len(similar), self.batch_size)]
        rest = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        return (index for batch in batches + rest for index in batch)
