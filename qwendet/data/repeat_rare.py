"""Samples with rare labels taken more than once in an epoch (``data.repeat_rare``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from random import Random


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
