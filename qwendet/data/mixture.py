"""Which samples an epoch takes, and how often: weights of sources and repeats of rare labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
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


def repeats(shown: Sequence[Collection[str]], threshold: float, seed: int) -> list[int]:
    """How often each sample is taken in an epoch, by the labels of its objects.

    ``r(sample) = max over its labels c of max(1, sqrt(threshold / f(c)))``, ``f(c)`` the share of samples
    that show ``c`` (LVIS, Gupta et al. 2019, after Mahajan et al. 2018). A fraction is rounded up with that
    probability, once for the run, so that all epochs have one length.

    Example:
        >>> repeats([{"cat"}] * 99 + [{"cat", "owl"}], threshold=0.16, seed=0)[-2:]
        [1, 4]
    """
    counts = Counter(label for labels in shown for label in set(labels))
    generator = Random(f"repeat/{seed}")
    found = []
    for labels in shown:
        factor = max((math.sqrt(threshold * len(shown) / counts[label]) for label in labels), default=1.0)
        part, whole = math.modf(max(1.0, factor))
        found.append(int(whole) + (generator.random() < part))
    return found
