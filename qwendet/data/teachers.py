"""Which demonstrations a sample gets: a function of seed, epoch and index alone, and never its own image."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from qwendet.data.archives import file_at, identity, same_bytes
from qwendet.data.samples import Turn


def choose_teachers(
    seed: int, epoch: int, index: int, pool_size: int, count: int, ratio: float, exclude: int | None = None
) -> list[int]:
    """Draw demonstrations for one sample: distinct indices into the pool, at most ``count``.

    No global random state is read, so the draw is the same in every worker process, on every rank
    and after a resume. The sample gets any with the probability ``ratio``, and never ``exclude`` (itself).

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


def without_own_image(
    drawn: Iterable[Turn], asked: Turn, count: int, labels: tuple[str, ...]
) -> tuple[Turn, ...]:
    """The first demonstrations, at most ``count``, that do not show the image that is asked about.

    Training and inference choose by it alike. Draw one more than is wanted: a pool may hold the image. Where
    the image is asked about labels of its own, one annotated for the label set is asked for those in it.
    """
    known = tuple(label for label in asked.labels or labels if label in labels)
    others = [turn for turn in drawn if not is_same_image(turn.root / turn.image, asked.root / asked.image)]
    if asked.labels is not None:
        others = [turn if turn.labels else turn.asking(known) for turn in others if turn.labels or known]
    return tuple(others[:count])


def is_same_image(one: Path, other: Path) -> bool:
    """Whether both are one file, whatever path or link leads there, or copies, byte for byte."""
    try:
        first, second = file_at(one), file_at(other)
        if first is None or second is None:
            return one == other
        return identity(first) == identity(second) or same_bytes(first, second)
    except OSError:  # absent, which is reported where the image is read
        return False
