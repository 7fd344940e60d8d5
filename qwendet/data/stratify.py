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
    total, counts = sum(weights), Counter[str]()
    for found, weight in zip(labels, weights, strict=True):
        counts.update(dict.fromkeys(found, weight))
    # How many images each part still wants, in all and with each label.
    images = {part: share * total for part, share in shares.items()}
    wanted = {
        label: {part: share * count for part, share in shares.items()} for label, count in counts.items()
    }
    chosen: list[str] = [""] * len(labels)
    by_label: dict[str, list[int]] = defaultdict(list)
    for group in sorted(range(len(labels)), key=lambda at: (-weights[at], generator.random())):
        for label in labels[group]:
            by_label[label].append(group)
    left = {label: len(groups) for label, groups in by_label.items()}
    while left:
        rarest = min(left, key=lambda label: (left[label], label))
        of_rarest = wanted[rarest]
        for group in by_label[rarest]:
            if not chosen[group]:
                # The part that wants most of the label; among equals most images, then any.
                worth = {part: (of_rarest[part], images[part], generator.random()) for part in images}
                part = chosen[group] = max(worth, key=worth.__getitem__)
                images[part] -= weights[group]
                for label in labels[group]:
                    wanted[label][part] -= weights[group]
                    if label in left:
                        left[label] -= 1
        del left[rarest]
    return chosen
