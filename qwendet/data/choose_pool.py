"""Choosing demonstrations: few images that show every label, in sparse, medium and dense scenes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwendet.data.archives import Stored, copies
from qwendet.data.formats.jsonl_writer import sample_line
from qwendet.data.images import resolve_image
from qwendet.data.samples import Sample, SampleSource
from qwendet.data.sources import samples_of
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
    samples = samples_of(train, root)
    prefix = "" if root else _prefix(train, out)
    if out.exists():
        raise ConfigError("there is a file of this name already", str(out), "remove it, or give another name")
    held = [_file(sample) for path in held_out for sample in samples_of(path, root)]
    labels, candidates, num_held_out = _look_at(samples, held)
    if not candidates:
        raise DataError(
            "there is no image to choose: each is held out, without objects, or holds a crowd",
            str(train),
            "give more training samples",
        )
    chosen = _choose(candidates, count, seed)
    with atomic_file(out) as staging:
        turns = (samples[candidate.index].student for candidate in chosen)
        staging.write_text(
            "".join(sample_line(turn, prefix + turn.image) for turn in turns),
            encoding="utf-8",
            errors="backslashreplace",
        )
    available, shown = _images_by_label(candidates), _images_by_label(chosen)
    densities = Counter(candidate.density for candidate in chosen)
    return PoolReport(
        out,
        {density: densities[density] for density in DENSITIES},
        {label: shown[label] for label in labels},
        {label: available[label] for label in labels},
        num_held_out,
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sample that may be chosen, by its index."""

    index: int
    labels: frozenset[str]
    num_objects: int
    bytes: object  # what its copies have in common
    density: str = ""


def _look_at(samples: SampleSource, held_out: Sequence[Stored]) -> tuple[list[str], list[_Candidate], int]:
    """Labels in the order in which they come, the samples that may be chosen, and how many are held out."""
    labels: dict[str, None] = {}
    candidates: list[_Candidate] = []
    num_held_out, files = 0, [_file(sample) for sample in samples]
    same = copies({*files, *held_out})
    forbidden = {same[file] for file in held_out}
    with track(f"looking at {samples.path.name}", len(samples)) as advance:
        for index, sample in enumerate(samples):
            objects, copied = sample.student.objects, same[files[index]]
            own = dict.fromkeys(item.desc for item in objects)
            labels |= own
            num_held_out += copied in forbidden
            if copied not in forbidden and objects and not any(item.crowd for item in objects):
                candidates.append(_Candidate(index, frozenset(own), len(objects), copied))
            advance(index + 1, "")
    return list(labels), _with_densities(candidates), num_held_out


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


def _choose(candidates: Sequence[_Candidate], count: int, seed: int) -> list[_Candidate]:
    """Choose one after the other, without copies: first what shows the rarest label not yet shown."""
    left = list(candidates)
    random.Random(f"pool/{seed}").shuffle(left)
    available = _images_by_label(candidates)
    shown: Counter[str] = Counter()
    densities: Counter[str] = Counter()

    def worth(candidate: _Candidate) -> tuple[int, int, float]:
        new = sum(not shown[label] for label in candidate.labels)
        gain = sum(1 / (1 + shown[label]) for label in candidate.labels)
        return new, -densities[candidate.density], gain

    chosen: list[_Candidate] = []
    while left and len(chosen) < count:
        missing = [label for label in available if not shown[label]]
        rarest = min(missing, key=lambda label: (available[label], label), default=None)
        best = max([one for one in left if rarest in one.labels] or left, key=worth)
        left = [one for one in left if one.bytes != best.bytes]
        chosen.append(best)
        shown.update(best.labels)
        densities[best.density] += 1
    return chosen


def _file(sample: Sample) -> Stored:
    return resolve_image(sample.student.image, sample.student.root, sample.where)
