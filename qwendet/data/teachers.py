"""Which demonstrations a training sample gets: a function of seed, epoch and index alone."""

from __future__ import annotations

import random


def choose_teachers(
    seed: int, epoch: int, index: int, pool_size: int, count: int, ratio: float, exclude: int | None = None
) -> list[int]:
    """Draw demonstrations for one sample.

    No global random state is read, so the draw is the same in every worker process, on every rank
    and after a resume.

    Args:
        seed: ``train.seed``.
        epoch: pass over the data, from 0.
        index: the sample's index in its file.
        pool_size: number of possible demonstrations.
        count: demonstrations wanted.
        ratio: probability that the sample gets any, in ``[0, 1]``.
        exclude: pool index that must not be drawn (the sample itself), if any.

    Returns:
        Distinct pool indices, at most ``count``.

    Example:
        >>> choose_teachers(0, 0, 7, pool_size=5, count=2, ratio=0.0)
        []
        >>> choose_teachers(0, 1, 7, 5, 2, 1.0) == choose_teachers(0, 1, 7, 5, 2, 1.0)
        True
    """
    generator = random.Random(f"{seed}/{epoch}/{index}")
    if generator.random() >= ratio:
        return []
    if exclude is None:
        return generator.sample(range(pool_size), min(count, pool_size))
    drawn = generator.sample(range(pool_size - 1), min(count, pool_size - 1))
    return [candidate + (candidate >= exclude) for candidate in drawn]
