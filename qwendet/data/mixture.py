"""Which samples an epoch takes, and how often: weights of sources and repeats of rare labels."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random


def mixed(
    usable: Sequence[int],
    often: Sequence[int] | None,
    starts: Sequence[int],
    weights: Sequence[float],
    seed: int,
    epoch: int,
) -> tuple[list[int], int]:
    """The samples of an epoch, a function of seed and epoch alone.

    A source of weight ``w`` gives each of its samples ``floor(w)`` times, and of the rest of the weight that
    share of them: in an order shuffled once by the seed, the next part in every epoch. All epochs have one
    length.

    Args:
        usable: indices of samples, ascending.
        often: how often each is to be there before weights count; ``None`` is once.
        starts: index of the first sample of each source, and the number of all.
        weights: one for each source.
        seed: ``train.seed``.
        epoch: pass over the data, from 0.

    Returns:
        Indices, each sample's first use before all further ones; and how many first uses there are.

    Example:
        >>> mixed(range(4), None, [0, 3, 4], [1.0, 2.0], seed=0, epoch=0)
        ([0, 1, 2, 3, 3], 4)
        >>> halves = [mixed(range(4), None, [0, 4], [0.5], seed=0, epoch=epoch)[0] for epoch in (0, 1)]
        >>> sorted(halves[0] + halves[1])
        [0, 1, 2, 3]
    """
    first: dict[int, None] = {}
    again: list[int] = []
    times = often or [1] * len(usable)
    for number, weight in enumerate(weights):
        low, high = starts[number], starts[number + 1]
        own = [
            index
            for index, count in zip(usable, times, strict=True)
            for _ in range(count)
            if low <= index < high
        ]
        taken = own * int(weight)
        if count := round(weight % 1 * len(own)) or not taken:
            Random(f"mixture/{seed}/{number}").shuffle(own)
            begin = epoch * count % max(1, len(own))
            taken += sorted((own + own)[begin : begin + count])
        for index in taken:
            if index in first:
                again.append(index)
            else:
                first[index] = None
    return [*first, *again], len(first)
