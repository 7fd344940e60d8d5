"""A data set divided into training, validation and test, each label's share kept in every part.

Images without objects count as a label of their own, so that negatives are spread as well. Identical images
stay together: one in training and its copy in validation would be an answer given away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from qwendet.data.archives import Stored, file_at
from qwendet.data.copies import copies
from qwendet.data.formats.convert import (
    MAX_PROBLEMS,
    Conversion,
    ConversionReport,
    refuse_occupied,
    write_source,
)
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Record, Source
from qwendet.data.stratify import stratify
from qwendet.errors import ConfigError, DataError, Problem
from qwendet.progress import track

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

    source = opened()
    held_out = frozenset({"val", "test"}) if keep_held_out else frozenset[str]()
    labels = _labels_by_image(source, src.name, held_out, skip_bad=how.skip_bad)
    images_of: dict[Stored, list[str]] = defaultdict(list)
    for image in labels:
        images_of[file_at(source.root / image) or source.root / image].append(image)
    by_bytes: dict[object, list[str]] = defaultdict(list)
    for file, key in copies(images_of).items():
        by_bytes[key] += images_of[file]
    groups = list(by_bytes.values())
    parts = stratify(
        [frozenset[str]().union(*(labels[image] for image in group)) for group in groups],
        [len(group) for group in groups],
        shares,
        seed,
    )
    _require_all(parts, shares, src, len(labels))
    part_of = {image: part for group, part in zip(groups, parts, strict=True) for image in group}

    def part(record: Record) -> str:
        return record.split if record.split in held_out else part_of[record.sample.student.image]

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


def _labels_by_image(
    source: Source, name: str, held_out: Collection[str], *, skip_bad: bool
) -> dict[str, set[str]]:
    """Labels of each image that is in none of the splits ``held_out``, by path relative to the root.

    Broken images are reported here: without them a part may be too small, and the error would be of that.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    problems: list[Problem] = []
    with track(f"looking at {name}", source.total) as advance:
        for item in source.items:
            if isinstance(item, Record) and item.split in held_out:
                if item.split == "val":
                    what = "there is a validation split already"
                    raise ConfigError(what, "--val", "leave --val out, or use qwendet data split")
            elif isinstance(item, Record):
                turn = item.sample.student
                labels[turn.image].update(found.desc for found in turn.objects)
                advance(len(labels), "")
            elif isinstance(item, Problem) and len(problems) < MAX_PROBLEMS:
                problems.append(item)
    if problems and not (skip_bad and labels):
        raise DataError.of(problems)
    return {image: found or {NEGATIVE} for image, found in labels.items()}


def _require_all(parts: Sequence[str], shares: Mapping[str, float], src: Path, num_images: int) -> None:
    empty = [part for part in shares if part not in parts]
    if empty:
        raise DataError(
            f"no image is left for {empty[0]}: {num_images} are too few for {shares[empty[0]]:g} of them",
            str(src),
            "ask for a larger fraction, or for fewer splits",
        )
