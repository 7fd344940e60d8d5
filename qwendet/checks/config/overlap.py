"""Images that are where they must not be: trained and validated on, shown as their own answer, contradicted.

An image is known by its file, whatever path or link leads there, and by its bytes, whatever its name.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from qwendet.checks.config.dataset import Check, Dataset
from qwendet.checks.config.samples import Split
from qwendet.checks.config.stats import SeenImage, SplitStats
from qwendet.data.archives import Stored, file_at, same_bytes
from qwendet.errors import Problem

HELD_OUT: tuple[Split, ...] = ("val", "test")
NAMES = {"val": "validation", "test": "the test samples"}
PROBE_BYTES = 4096


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
    for split, seen, held_out in _shared(train, students, dataset.splits):
        named = _named(seen, held_out)
        what = f"the training image {named} is also in {NAMES[split]}, which would measure memory"
        yield Problem(what, train.where(seen.line), f"remove the sample from data.train or data.{split}")


def demonstrations_do_not_leak(dataset: Dataset) -> Iterable[Problem]:
    """No demonstration shows a validation image, or the very image that is asked about."""
    for split, stats in dataset.splits.items():
        yield from _own_answers(stats)
        if split in HELD_OUT:
            continue
        shown = [seen for seen in stats.images if seen.is_demonstration or split == "teachers"]
        for held_split, seen, held_out in _shared(stats, shown, dataset.splits):
            named = _named(seen, held_out)
            what = f"the demonstration image {named} is also in {NAMES[held_split]}: it gives the answer"
            yield Problem(what, stats.where(seen.line), "remove the demonstration, or take another image")


def _own_answers(stats: SplitStats) -> Iterable[Problem]:
    """Samples that show, as a demonstration, the image that is then asked about."""
    students = {seen.line: seen for seen in stats.images if not seen.is_demonstration}
    for seen in stats.images:
        student = students.get(seen.line)
        if seen.is_demonstration and student is not None and _is_same_image(seen, student):
            what = f"a demonstration shows {seen.image!r}, the very image that is asked about"
            yield Problem(what, stats.where(seen.line), "remove the demonstration, or take another image")


def answers_agree(dataset: Dataset) -> Iterable[Problem]:
    """No image is asked about the same labels twice with different objects, be it under one name or two."""
    for split, stats in dataset.splits.items():
        students = [seen for seen in stats.images if not seen.is_demonstration]
        first: dict[object, SeenImage] = {}
        for seen in students:
            first.setdefault((seen.file_id, seen.labels), seen)
        sizes = Counter(seen.num_bytes for seen in first.values())
        by_probe = _by_probe(first.values(), {size for size, count in sizes.items() if count > 1})
        for seen in students:
            earlier = first[seen.file_id, seen.labels]
            if earlier is seen:
                earlier = _same_bytes(seen, by_probe) or seen
            if earlier.answer != seen.answer and earlier.labels == seen.labels:
                what = (
                    f"{_named(seen, earlier)} is asked about with other objects than in"
                    f" {stats.where(earlier.line)}: each answer would be learned as complete"
                )
                yield Problem(
                    what, stats.where(seen.line), f"put all its objects into one sample of data.{split}"
                )


def _shared(
    stats: SplitStats, uses: Iterable[SeenImage], splits: Mapping[Split, SplitStats]
) -> Iterable[tuple[Split, SeenImage, SeenImage]]:
    """Uses of an image that a held-out file asks about: the split, the use, the held-out one."""
    uses = list(uses)
    for split in HELD_OUT:
        if split not in splits or _is_one_file(stats, splits[split]):  # files_differ says it once
            continue
        held_out = [seen for seen in splits[split].images if not seen.is_demonstration]
        by_file = {seen.file_id: seen for seen in held_out}
        by_probe = _by_probe(held_out, {seen.num_bytes for seen in uses})
        for seen in uses:
            same = by_file.get(seen.file_id) or _same_bytes(seen, by_probe)
            if same is not None:
                yield split, seen, same


Probe = tuple[int, bytes]


def _by_probe(images: Iterable[SeenImage], sizes: set[int]) -> dict[int, dict[Probe, SeenImage]]:
    """Images by size of their file and by probe; only those whose size is among ``sizes`` are read."""
    found: dict[int, dict[Probe, SeenImage]] = defaultdict(dict)
    for seen in images:
        if seen.num_bytes and seen.num_bytes in sizes:
            found[seen.num_bytes].setdefault(_probe(seen), seen)
    return found


def _same_bytes(seen: SeenImage, by_probe: Mapping[int, Mapping[Probe, SeenImage]]) -> SeenImage | None:
    candidates = by_probe.get(seen.num_bytes)
    other = candidates.get(_probe(seen)) if candidates else None
    return other if other is not None and _is_same_image(seen, other) else None


def _probe(seen: SeenImage) -> Probe:
    """Size and a digest of both ends and the middle of a file: other for nearly all files that differ."""
    digest = hashlib.blake2b(digest_size=16)
    with _stored(seen).open("rb") as file:
        for offset in (0, seen.num_bytes // 2, max(0, seen.num_bytes - PROBE_BYTES)):
            file.seek(offset)
            digest.update(file.read(PROBE_BYTES))
    return seen.num_bytes, digest.digest()


def _is_same_image(seen: SeenImage, other: SeenImage) -> bool:
    if seen.file_id == other.file_id:
        return True
    is_candidate = seen.num_bytes > 0 and seen.num_bytes == other.num_bytes
    return is_candidate and same_bytes(_stored(seen), _stored(other))


def _stored(seen: SeenImage) -> Stored:
    found = file_at(Path(seen.path))
    assert found is not None
    return found


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
