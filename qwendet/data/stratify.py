"""Dealing out images so that every part gets its share of every label.

Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data" (ECML PKDD 2011),
algorithm 1, for groups of images that must stay together: the rarest label is dealt out first, each time to
the part that still wants most of it.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet


def stratify(
    labels: Sequence[AbstractSet[str]], weights: Sequence[int], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Choose a part for each group, by its labels and its number of images.

    ``shares`` are each part's share of the images, above 0 and together 1; another seed is another division.

    Example:
        >>> stratify([{"a"}, {"a"}, {"b"}, {"b"}], [1, 1, 1, 1], {"train": 0.5, "val": 0.5}, 0)
        ['train', 'val', 'train', 'val']
    """
    generator = random.Random(f"split/{seed}")
    wanted = _Wanted(labels, weights, shares)
    chosen: list[str] = [""] * len(labels)
    by_label: dict[str, list[int]] = defaultdict(list)
    for group in sorted(range(len(labels)), key=lambda at: (-weights[at], generator.random())):
        for label in labels[group]:
            by_label[label].append(group)
    left = {label: len(groups) for label, groups in by_label.items()}
    while left:
        rarest = min(left, key=lambda label: (left[label], label))
        for group in by_label[rarest]:
            if not chosen[group]:
                chosen[group] = wanted.part(rarest, generator)
                wanted.take(chosen[group], labels[group], weights[group])
                for label in labels[group] & left.keys():
                    left[label] -= 1
        del left[rarest]
    return chosen


class _Wanted:
    """How many images each part still wants, in all and with each label."""

    def __init__(
        self, labels: Sequence[AbstractSet[str]], weights: Sequence[int], shares: Mapping[str, float]
    ) -> None:
        counts: Counter[str] = Counter()
        for found, weight in zip(labels, weights, strict=True):
            counts.update(dict.fromkeys(found, weight))
        total = sum(weights)
        self.images = {part: share * total for part, share in shares.items()}
        self.labels = {
            label: {part: share * count for part, share in shares.items()} for label, count in counts.items()
        }

    def part(self, label: str, generator: random.Random) -> str:
        """The part that wants most of a label; among equals most images, then any."""
        wanted = self.labels[label]
        return max(self.images, key=lambda part: (wanted[part], self.images[part], generator.random()))

    def take(self, part: str, labels: AbstractSet[str], weight: int) -> None:
        """Note that a part got a group."""
        self.images[part] -= weight
        for label in labels:
            self.labels[label][part] -= weight
