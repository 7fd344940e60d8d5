"""Images that are where they must not be: trained and validated on, shown as their own answer, contradicted.

An image is known by its file, whatever path or link leads there, and by its bytes, whatever its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qwendet.checks.config.dataset import Check, Dataset
from qwendet.checks.config.samples import Split
from qwendet.checks.config.stats import SeenImage, SplitStats
from qwendet.errors import Problem

HELD_OUT: tuple[Split, ...] = ("val", "test")
NAMES = {"val": "validation", "test": "the test samples"}


def files_differ(dataset: Dataset) -> Iterable[Problem]:
    """No two splits are one file."""
    splits = list(dataset.splits.items())
    for index, (split, stats) in enumerate(splits):
        for other_split, other in splits[:index]:
            if {split, other_split} != {"train", "teachers"} and _is_one_file(stats, other):
                what = f"data.{split} and data.{other_split} hold the same samples: {stats.name}"
                yield Problem(what, f"data.{split}", "give each split samples of its own")


def _is_one_file(stats: SplitStats, other: SplitStats) -> bool:
    return stats.num_samples > 0 and stats.lines.keys() == other.lines.keys() and bool(stats.lines)


def training_is_not_validation(dataset: Dataset) -> Iterable[Problem]:
    """No training image is a validation image."""
    train = dataset.splits["train"]
    students = [seen for seen in train.images if not seen.is_demonstration]
    for split, seen, held_out in _shared(dataset, train, students):
        named = _named(seen, held_out)
        what = f"the training image {named} is also in {NAMES[split]}, which would measure memory"
        yield Problem(what, train.where(seen.line), f"remove the sample from data.train or data.{split}")


def demonstrations_do_not_leak(dataset: Dataset) -> Iterable[Problem]:
    """No demonstration shows a validation image, or the very image that is asked about."""
    for split, stats in dataset.splits.items():
        yield from _own_answers(dataset, stats)
        if split in HELD_OUT:
            continue
        shown = [seen for seen in stats.images if seen.is_demonstration or split == "teachers"]
        for held_split, seen, held_out in _shared(dataset, stats, shown):
            named = _named(seen, held_out)
            what = f"the demonstration image {named} is also in {NAMES[held_split]}: it gives the answer"
            yield Problem(what, stats.where(seen.line), "remove the demonstration, or take another image")


def _own_answers(dataset: Dataset, stats: SplitStats) -> Iterable[Problem]:
    """Samples that show, as a demonstration, the image that is then asked about."""
    students = {seen.line: dataset.content_of(seen) for seen in stats.images if not seen.is_demonstration}
    for seen in stats.images:
        if seen.is_demonstration and students.get(seen.line) == dataset.content_of(seen):
            what = f"a demonstration shows {seen.image!r}, the very image that is asked about"
            yield Problem(what, stats.where(seen.line), "remove the demonstration, or take another image")


def answers_agree(dataset: Dataset) -> Iterable[Problem]:
    """No image is asked about the same labels twice with different objects, be it under one name or two."""
    for split, stats in dataset.splits.items():
        first: dict[object, SeenImage] = {}
        for seen in stats.images:
            if seen.is_demonstration:
                continue
            earlier = first.setdefault((dataset.content_of(seen), seen.labels), seen)
            if earlier.answer != seen.answer:
                what = (
                    f"{_named(seen, earlier)} is asked about with other objects than in"
                    f" {stats.where(earlier.line)}: each answer would be learned as complete"
                )
                fix = f"put all its objects into one sample of data.{split}"
                yield Problem(what, stats.where(seen.line), fix)


def _shared(
    dataset: Dataset, stats: SplitStats, uses: Iterable[SeenImage]
) -> Iterable[tuple[Split, SeenImage, SeenImage]]:
    """Uses of an image that a held-out file asks about: the split, the use, the held-out one."""
    for split in HELD_OUT:
        other = dataset.splits.get(split)
        if other is None or _is_one_file(stats, other):  # files_differ says it once
            continue
        held_out: dict[object, SeenImage] = {}
        for seen in other.images:
            if not seen.is_demonstration:
                held_out.setdefault(dataset.content_of(seen), seen)
        for seen in uses:
            if (same := held_out.get(dataset.content_of(seen))) is not None:
                yield split, seen, same


def _named(seen: SeenImage, other: SeenImage) -> str:
    return repr(seen.image) if seen.image == other.image else f"{seen.image!r}, the same as {other.image!r},"


CHECKS: Mapping[str, Check] = {
    "config.data.same_file": Check(files_differ, "each split has samples of its own"),
    "config.data.train_val_overlap": Check(
        training_is_not_validation, "no training image is in validation", needs=("train",)
    ),
    "config.teachers.leak": Check(demonstrations_do_not_leak, "no demonstration gives an answer away"),
    "config.data.contradiction": Check(answers_agree, "no image is asked about with different objects"),
}
