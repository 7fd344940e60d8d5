"""Samples in batches, shared out among the processes that a launcher started.

    batches   0 1 2 3 4      process 0 of 2: 0 2 4      process 1 of 2: 1 3

Whole batches are dealt, so that every batch is the one that a single process would have made.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qwendet.data.samples import Sample
from qwendet.errors import DataError, Problem
from qwendet.inference.detections import Prediction
from qwendet.inference.sharding import rank_and_world
from qwendet.progress import Advance

WINDOW_BATCHES = 16
"""Most batches of a window: among so many, samples of similar length are found."""


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why."""

    problems: tuple[Problem, ...]


Result = Prediction | Skipped
Results = dict[int, Result]
"""By the number of the sample."""
Keep = Callable[[int, Results], None]
"""Takes the number of a batch and its results."""


@contextmanager
def skipping(skip_bad: bool, tell: Callable[[Skipped], object]) -> Iterator[None]:
    """With ``skip_bad``, tell that a sample cannot be used instead of raising the error."""
    try:
        yield
    except DataError as error:
        if not skip_bad:
            raise
        tell(Skipped(error.problems))


class Plan:
    """Samples in numbered batches, the same whoever predicts them and whatever is predicted already.

    samples ─► windows, in order ─► in each the longest first ─► batches

    Args:
        samples: what is asked about; taking one out may raise a ``DataError``.
        batch_size: samples of a batch.
        window: samples of a window, whole batches; ``None`` makes one of all.
        length: about how many tokens a sample has; ``None`` keeps the order.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        batch_size: int,
        window: int | None = None,
        length: Callable[[Sample], int] | None = None,
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.window = window or len(self) * batch_size
        self._length = length
        self._sorted: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def batch(self, number: int) -> list[int]:
        """The numbers of the samples of a batch."""
        first = number * self.batch_size
        start = first - first % self.window
        if self._sorted[0] != start:
            members = range(start, min(start + self.window, len(self.samples)))
            self._sorted = start, sorted(members, key=lambda index: -self._length_of(index))
        return self._sorted[1][first - start : first - start + self.batch_size]

    def _length_of(self, index: int) -> int:
        try:
            return 0 if self._length is None else self._length(self.samples[index])
        except DataError:  # reported when its batch is predicted
            return 0

    def windows(self) -> Iterator[range]:
        """The numbers of the batches of each window."""
        step = max(1, self.window // self.batch_size)
        return (range(start, min(start + step, len(self))) for start in range(0, len(self), step))


def window_size(num_samples: int, batch_size: int) -> int:
    """Samples of a window; small sets have windows enough to be divided into shards.

    Example:
        >>> window_size(1_000_000, 8), window_size(300, 8), window_size(10, 8)
        (128, 16, 8)
    """
    return batch_size * min(WINDOW_BATCHES, max(1, num_samples // batch_size // WINDOW_BATCHES))


def shard_of(num_samples: int, window: int, shard: tuple[int, int]) -> range:
    """The samples of shard ``(i, n)``, whole windows, so that each batch is that of the undivided run.

    Example:
        >>> [list(shard_of(10, 4, (number, 2))) for number in range(2)]
        [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    """
    number, count = shard
    windows = -(-num_samples // window)
    start, end = (windows * at // count * window for at in (number, number + 1))
    return range(start, min(end, num_samples))


def predict_share(
    predict: Callable[[Iterable[int], Keep], None],
    plan: Plan,
    keep: Keep,
    advance: Advance,
    *,
    done: Container[int] = (),
    alone: bool = False,
) -> None:
    """Predict this process' share of the batches that are not in ``done``; of all of them ``alone``.

    ``keep`` is called with the results of each, ``advance`` with the samples that all processes have done if
    they are as fast as this one.
    """
    rank, world = (0, 1) if alone else rank_and_world()
    total = len(plan.samples)
    finished = sum(number in done for number in range(len(plan))) * plan.batch_size

    def keep_and_tell(batch: int, results: Results) -> None:
        nonlocal finished
        keep(batch, results)
        finished += len(results) * world
        advance(min(finished, total), "")

    todo = (number for number in range(rank, len(plan), world) if number not in done)
    predict(todo, keep_and_tell)


def predict_in_memory(
    predict: Callable[[Iterable[int], Keep], None], plan: Plan, advance: Advance, *, alone: bool = False
) -> list[Prediction]:
    """Predict all samples by all processes together; each has all predictions, in order."""
    from torch import distributed

    found: dict[int, Any] = {}
    predict_share(predict, plan, lambda _, results: found.update(results), advance, alone=alone)
    if distributed.is_initialized() and not alone:
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, found)
        found = {index: result for part in gathered for index, result in part.items()}
    return [found[index] for index in range(len(plan.samples))]
