"""Choosing demonstrations: few images that show every label, in sparse, medium and dense scenes."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwendet.data.images import resolve_image
from qwendet.data.jsonl_writer import sample_line
from qwendet.data.samples import Sample, SampleFile
from qwendet.errors import ConfigError, DataError
from qwendet.files import atomic_file, sha256_of_file
from qwendet.progress import Tracker

DENSITIES = ("sparse", "medium", "dense")
"""Thirds of the training images by number of objects."""


@dataclass(frozen=True, slots=True)
class PoolReport:
    """What was chosen.

    Attributes:
        file: the pool.
        images: chosen images by density.
        shown: for each label of the training samples, chosen images that show it.
        available: for each, images that could be chosen and show it.
        held_out: training images that were passed over because they are held out.
    """

    file: Path
    images: dict[str, int]
    shown: dict[str, int]
    available: dict[str, int]
    held_out: int = 0


def choose_pool(
    train: Path,
    out: Path,
    count: int,
    *,
    held_out: Sequence[Path],
    root: Path | None,
    seed: int,
    tracker: Tracker,
) -> PoolReport:
    """Write a pool of demonstrations for ``data.teachers``.

    Every label is shown, rare ones first; then each image is one that shows most of what has been shown
    least. All come evenly from sparse, medium and dense scenes as far as there are such. Images with crowd
    boxes are never chosen, because their answers are incomplete.

    Args:
        train: the sample file to choose from.
        out: the pool; the images must lie in its folder or below, unless ``root`` is given.
        count: images wanted; fewer are taken where there are fewer.
        held_out: sample files, such as validation, whose images may not be chosen, nor copies of them.
        root: ``data.root``, if the config sets it.
        seed: decides between equals.
        tracker: shows progress.

    Raises:
        ConfigError: if the pool would overwrite something or could not name its images.
        DataError: if a sample is broken, or none can be chosen.
    """
    prefix = "" if root else _prefix(train, out)
    if out.exists():
        raise ConfigError("there is a file of this name already", str(out), "remove it, or give another name")
    forbidden = _Files(sample for path in held_out for sample in SampleFile(path, root))
    labels: Counter[str] = Counter()
    candidates: list[Sample] = []
    num_held_out = 0
    samples = SampleFile(train, root)
    with tracker(f"looking at {train.name}", len(samples)) as advance:
        for index, sample in enumerate(samples):
            labels.update(dict.fromkeys((item.desc for item in sample.student.objects), 0))
            if forbidden.hold(sample):
                num_held_out += 1
            elif _is_demonstration(sample):
                candidates.append(sample)
            advance(index + 1, "")
    if not candidates:
        raise DataError(
            "there is no image to choose: each is held out, without objects, or holds a crowd",
            str(train),
            "give more training samples",
        )
    density_of = _densities(candidates)
    chosen = _Choice(candidates, density_of, seed).make(count)
    with atomic_file(out) as staging:
        lines = (sample_line(sample.student, prefix + sample.student.image) for sample in chosen)
        staging.write_text("".join(lines), encoding="utf-8")
    available = _images_by_label(candidates)
    shown = _images_by_label(chosen)
    densities = Counter(density_of[id(sample)] for sample in chosen)
    return PoolReport(
        out,
        {density: densities[density] for density in DENSITIES},
        {label: shown[label] for label in labels},
        {label: available[label] for label in labels},
        num_held_out,
    )


def _prefix(train: Path, out: Path) -> str:
    """What a pool's image paths begin with, seen from its own folder."""
    home, images = out.parent.resolve(), train.parent.resolve()
    if not images.is_relative_to(home):
        raise ConfigError(
            "the pool's folder does not hold the images, so it could not name them",
            str(out),
            f"write it into {train.parent}, or give --root as data.root",
        )
    folder = images.relative_to(home).as_posix()
    return "" if folder == "." else f"{folder}/"


def _is_demonstration(sample: Sample) -> bool:
    objects = sample.student.objects
    return bool(objects) and not any(item.crowd for item in objects)


def _labels(sample: Sample) -> set[str]:
    return {item.desc for item in sample.student.objects}


def _images_by_label(samples: Iterable[Sample]) -> Counter[str]:
    return Counter(label for sample in samples for label in _labels(sample))


def _densities(samples: Sequence[Sample]) -> dict[int, str]:
    """The density of each sample, by identity: thirds by number of objects, equal numbers together."""
    numbers = sorted(len(sample.student.objects) for sample in samples)
    low, high = numbers[(len(numbers) - 1) // 3], numbers[2 * (len(numbers) - 1) // 3]
    return {
        id(sample): DENSITIES[(number > low) + (number > max(high, low))]
        for sample in samples
        for number in [len(sample.student.objects)]
    }


class _Choice:
    """Chooses one demonstration after the other."""

    def __init__(self, candidates: Sequence[Sample], density_of: dict[int, str], seed: int) -> None:
        self.left = list(candidates)
        random.Random(f"pool/{seed}").shuffle(self.left)
        self.density_of = density_of
        self.available = _images_by_label(candidates)
        self.shown: Counter[str] = Counter()
        self.densities: Counter[str] = Counter()
        self.chosen: list[Sample] = []

    def make(self, count: int) -> list[Sample]:
        """Choose, without copies of what was chosen."""
        taken = _Files(())
        while self.left and len(self.chosen) < count:
            best = max(self._eligible(), key=self._worth)
            self.left.remove(best)
            if not taken.hold(best):
                taken.add(best)
                self.chosen.append(best)
                self.shown.update(_labels(best))
                self.densities[self.density_of[id(best)]] += 1
        return self.chosen

    def _eligible(self) -> list[Sample]:
        """Those that show the rarest label not yet shown, else all that are left."""
        missing = [label for label in self.available if not self.shown[label]]
        rarest = min(missing, key=lambda label: (self.available[label], label), default=None)
        return [sample for sample in self.left if rarest in _labels(sample)] or self.left

    def _worth(self, sample: Sample) -> tuple[int, int, float]:
        labels = _labels(sample)
        new = sum(not self.shown[label] for label in labels)
        gain = sum(1 / (1 + self.shown[label]) for label in labels)
        return new, -self.densities[self.density_of[id(sample)]], gain


class _Files:
    """Image files, known by their bytes; only files of equal length are read."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_length: dict[int, list[Path]] = defaultdict(list)
        for sample in samples:
            self.add(sample)

    def add(self, sample: Sample) -> None:
        """Take an image in."""
        file = _file(sample)
        self._by_length[file.stat().st_size].append(file)

    def hold(self, sample: Sample) -> bool:
        """Whether an image, or a copy of it, is among them."""
        file = _file(sample)
        others = self._by_length.get(file.stat().st_size, ())
        return any(file == other or sha256_of_file(file) == sha256_of_file(other) for other in others)


def _file(sample: Sample) -> Path:
    return resolve_image(sample.student.image, sample.student.root, sample.where)
