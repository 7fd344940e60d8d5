"""Choosing demonstrations: few images that show every label, in sparse, medium and dense scenes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwendet.data.archives import Stored
from qwendet.data.copies import copies
from qwendet.data.formats.jsonl_writer import sample_line
from qwendet.data.images import resolve_image
from qwendet.data.samples import Sample, SampleFile
from qwendet.errors import ConfigError, DataError
from qwendet.files import atomic_file
from qwendet.progress import track

DENSITIES = ("sparse", "medium", "dense")
"""Thirds of the training images by number of objects."""


@dataclass(frozen=True, slots=True)
class PoolReport:
    """What was chosen.

    Attributes:
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
    """
    samples = SampleFile(train, root)
    prefix = "" if root else _prefix(train, out)
    if out.exists():
        raise ConfigError("there is a file of this name already", str(out), "remove it, or give another name")
    held = [_file(sample) for path in held_out for sample in SampleFile(path, root)]
    survey = _look_at(samples, held)
    if not survey.candidates:
        raise DataError(
            "there is no image to choose: each is held out, without objects, or holds a crowd",
            str(train),
            "give more training samples",
        )
    chosen = _Choice(survey.candidates, seed).make(count)
    with atomic_file(out) as staging:
        turns = (samples[candidate.index].student for candidate in chosen)
        staging.write_text(
            "".join(sample_line(turn, prefix + turn.image) for turn in turns),
            encoding="utf-8",
            errors="backslashreplace",
        )
    available, shown = _images_by_label(survey.candidates), _images_by_label(chosen)
    densities = Counter(candidate.density for candidate in chosen)
    return PoolReport(
        out,
        {density: densities[density] for density in DENSITIES},
        {label: shown[label] for label in survey.labels},
        {label: available[label] for label in survey.labels},
        survey.num_held_out,
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sample that may be chosen, by its index."""

    index: int
    labels: frozenset[str]
    num_objects: int
    bytes: object  # what its copies have in common
    density: str = ""


@dataclass(slots=True)
class _Survey:
    """What a pass over the training samples saw; labels in the order in which they came."""

    labels: dict[str, None] = field(default_factory=dict)
    candidates: list[_Candidate] = field(default_factory=list)
    num_held_out: int = 0


def _look_at(samples: SampleFile, held_out: Sequence[Stored]) -> _Survey:
    survey, files = _Survey(), [_file(sample) for sample in samples]
    same = copies({*files, *held_out})
    forbidden = {same[file] for file in held_out}
    with track(f"looking at {samples.path.name}", len(samples)) as advance:
        for index, sample in enumerate(samples):
            objects = sample.student.objects
            labels = dict.fromkeys(item.desc for item in objects)
            survey.labels |= labels
            if same[files[index]] in forbidden:
                survey.num_held_out += 1
            elif objects and not any(item.crowd for item in objects):
                survey.candidates.append(
                    _Candidate(index, frozenset(labels), len(objects), same[files[index]])
                )
            advance(index + 1, "")
    survey.candidates = _with_densities(survey.candidates)
    return survey


def _with_densities(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Thirds by number of objects; equal numbers stay together."""
    numbers = sorted(candidate.num_objects for candidate in candidates) or [0]
    low, high = numbers[(len(numbers) - 1) // 3], numbers[2 * (len(numbers) - 1) // 3]
    return [
        replace(one, density=DENSITIES[(one.num_objects > low) + (one.num_objects > max(high, low))])
        for one in candidates
    ]


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


def _images_by_label(candidates: Iterable[_Candidate]) -> Counter[str]:
    return Counter(label for candidate in candidates for label in candidate.labels)


class _Choice:
    """Chooses one demonstration after the other."""

    def __init__(self, candidates: Sequence[_Candidate], seed: int) -> None:
        self.left = list(candidates)
        random.Random(f"pool/{seed}").shuffle(self.left)
        self.available = _images_by_label(candidates)
        self.shown: Counter[str] = Counter()
        self.densities: Counter[str] = Counter()

    def make(self, count: int) -> list[_Candidate]:
        """Choose, without copies of what was chosen."""
        taken: set[object] = set()
        chosen: list[_Candidate] = []
        while self.left and len(chosen) < count:
            best = max(self._eligible(), key=self._worth)
            self.left.remove(best)
            if best.bytes not in taken:
                taken.add(best.bytes)
                chosen.append(best)
                self.shown.update(best.labels)
                self.densities[best.density] += 1
        return chosen

    def _eligible(self) -> list[_Candidate]:
        """Those that show the rarest label not yet shown, else all that are left."""
        missing = [label for label in self.available if not self.shown[label]]
        rarest = min(missing, key=lambda label: (self.available[label], label), default=None)
        return [candidate for candidate in self.left if rarest in candidate.labels] or self.left

    def _worth(self, candidate: _Candidate) -> tuple[int, int, float]:
        new = sum(not self.shown[label] for label in candidate.labels)
        gain = sum(1 / (1 + self.shown[label]) for label in candidate.labels)
        return new, -self.densities[candidate.density], gain


def _file(sample: Sample) -> Stored:
    return resolve_image(sample.student.image, sample.student.root, sample.where)
