"""A data set divided into training, validation and test, each label's share kept in every part.

Images without objects count as a label of their own, so that negatives are spread as well. Identical images
stay together: one in training and its copy in validation would be an answer given away.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from qwendet.data.archives import Stored, copies, file_at
from qwendet.data.formats.convert import (
    Conversion,
    ConversionReport,
    refuse_occupied,
    sound_records,
    write_source,
)
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Record, Source
from qwendet.errors import ConfigError, DataError

NEGATIVE = ""
"""Stands for the label of an image without objects."""


def split_dataset(
    src: Path,
    dst: Path,
    fractions: Mapping[str, float],
    seed: int,
    how: Conversion,
    *,
    keep_held_out: bool = False,
) -> ConversionReport:
    """Divide a data set anew, whatever splits it has; complete or not at all.

    Args:
        src: the data set, of any format.
        dst: a folder that is absent or empty.
        fractions: share of the images by split, such as ``{"val": 0.1, "test": 0.1}``; the rest is
            ``train``.
        seed: another seed is another division.
        how: as for :func:`~qwendet.data.formats.convert.convert_dataset`.
        keep_held_out: divide the training images alone; a test split stays what it is.

    Raises:
        ConfigError: if a fraction is not between 0 and 1, or nothing is left for training; with
            ``keep_held_out``, if there is a validation split already.
        DataError: if the data set is broken, or too small for a part to get an image.
    """
    shares = _shares(fractions)
    refuse_occupied(dst)
    may_be_absent = how.images == "reference"

    def opened() -> Source:
        return open_source(src, how.source, how.image_dir, frame=how.frame, may_be_absent=may_be_absent)

    held_out = frozenset({"val", "test"}) if keep_held_out else frozenset[str]()
    labels: dict[str, set[str]] = defaultdict(set)
    images_of: dict[Stored, set[str]] = defaultdict(set)
    # Broken images are reported here: without them a part may be too small, and the error would be of that.
    for record in sound_records(opened(), f"looking at {src.name}", skip_bad=how.skip_bad):
        turn = record.turn
        if record.split not in held_out:
            labels[turn.image].update(found.desc for found in turn.objects)
            images_of[file_at(turn.root / turn.image) or turn.root / turn.image].add(turn.image)
        elif record.split == "val":
            what = "there is a validation split already"
            raise ConfigError(what, "--val", "leave --val out, or use qwendet data split")
    by_bytes: dict[object, list[str]] = defaultdict(list)
    for file, key in copies(images_of).items():
        by_bytes[key] += images_of[file]
    groups = list(by_bytes.values())
    labels = {image: found or {NEGATIVE} for image, found in labels.items()}
    parts = stratify(
        [frozenset[str]().union(*(labels[image] for image in group)) for group in groups],
        [len(group) for group in groups],
        shares,
        seed,
    )
    _require_all(parts, shares, src, len(labels))
    part_of = {image: part for group, part in zip(groups, parts, strict=True) for image in group}

    def part(record: Record) -> str:
        return record.split if record.split in held_out else part_of[record.turn.image]

    return write_source(opened(), src.name, dst, how, part)


def _shares(fractions: Mapping[str, float]) -> dict[str, float]:
    """Shares of all parts; those of 0 are left out."""
    for split, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ConfigError(
                f"expected a fraction from 0 to 1, got {fraction:g}", f"--{split}", "such as 0.1"
            )
    rest = 1 - sum(fractions.values())
    if rest <= 1e-9 or rest == 1:
        raise ConfigError(
            "expected training to keep some images and another split to get some",
            " ".join(f"--{split} {fraction:g}" for split, fraction in fractions.items()),
            "for example --val 0.1 --test 0.1",
        )
    return {"train": rest} | {split: fraction for split, fraction in fractions.items() if fraction}


def _require_all(parts: Sequence[str], shares: Mapping[str, float], src: Path, num_images: int) -> None:
    empty = [part for part in shares if part not in parts]
    if empty:
        raise DataError(
            f"no image is left for {empty[0]}: {num_images} are too few for {shares[empty[0]]:g} of them",
            str(src),
            "ask for a larger fraction, or for fewer splits",
        )


def stratify(
    labels: Sequence[AbstractSet[str]], weights: Sequence[int], shares: Mapping[str, float], seed: int
) -> list[str]:
    """Choose a part for each group of images, by its labels and its number of images.

    Algorithm 1 of Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data" (ECML PKDD
    2011), for groups that stay together: the rarest label is dealt out first, each time to the part that
    still wants most of it.

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
