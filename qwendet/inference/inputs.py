"""What is asked about: images, folders of images, sample files, and the demonstrations shown before.

Nothing here holds the samples: each is made when it is asked for, so that memory does not grow with them.
"""

from __future__ import annotations

import hashlib
import os
import sys
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path, PurePath
from typing import overload

from qwendet.config.schema import Config
from qwendet.data.archives import SUFFIXES, file_at
from qwendet.data.formats.coco import coco_images
from qwendet.data.formats.coco_layout import is_coco
from qwendet.data.images import IMAGE_SUFFIXES, inspect_image
from qwendet.data.samples import Sample, SampleFile, Turn
from qwendet.data.shards import open_shard
from qwendet.data.sources import source_files
from qwendet.data.teachers import choose_teachers, is_same_image, without_own_image
from qwendet.encoding.dataset import open_samples, teacher_pool
from qwendet.errors import DataError, Problem
from qwendet.files import files_below, is_url
from qwendet.inference.detections import CocoIds
from qwendet.inference.sharding import is_first_process, of_first_process
from qwendet.progress import track


class Samples(Sequence[Sample]):
    """Samples that are made by their numbers when they are asked for."""

    def __init__(self, length: int, make: Callable[[int], Sample]) -> None:
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice | range) -> Samples: ...
    def __getitem__(self, index: int | slice | range) -> Sample | Samples:
        if isinstance(index, int):
            return self._make(range(self._length)[index])
        chosen = range(self._length)[index] if isinstance(index, slice) else index
        return Samples(len(chosen), lambda number: self._make(chosen[number]))

    @staticmethod
    def joined(parts: Sequence[Samples]) -> Samples:
        """All samples of several, in order."""
        starts = list(accumulate(map(len, parts), initial=0))

        def make(number: int) -> Sample:
            at = bisect(starts, number) - 1
            return parts[at][number - starts[at]]

        return Samples(starts[-1], make)


def sample_of_image(path: Path) -> Sample:
    """A question about an image file; its folder is the root."""
    return Sample(Turn(image=path.name, objects=(), root=path.parent), where=str(path))


def collect_samples(inputs: Sequence[Path]) -> Samples:
    """The samples of images, folders and JSONL files, each image looked at as far as its header."""
    samples = find_samples(inputs)
    digest_of(samples)
    return samples


def find_samples(inputs: Sequence[Path]) -> Samples:
    """The samples of images, folders and JSONL files; no image is opened."""
    given = Counter(path.resolve() for path in inputs)
    if twice := [str(path) for path, times in given.items() if times > 1]:
        raise DataError("this is given twice", twice[0], "give each input once")
    return Samples.joined([_samples_of(path) for path in inputs])


def digest_of(samples: Sequence[Sample], *, skip_bad: bool = False) -> str:
    """A digest of what is asked about: names, sizes, and what the demonstrations show.

    Without ``skip_bad`` each image whose header cannot be used is named in one error.
    """
    problems: list[Problem] = []
    digest = hashlib.sha256()
    with track("looking at images", len(samples)) as advance:
        for index in range(len(samples)):
            try:
                known = facts_of(samples[index])
            except DataError as error:
                problems += [] if skip_bad else error.problems
                known = str(error)
            digest.update(known.encode("utf-8", "surrogateescape"))
            advance(index + 1, "")
    if problems:
        raise DataError.of(problems)
    return digest.hexdigest()


def facts_of(sample: Sample) -> str:
    """What is asked about, and in which batch; of each image its name and size, not its pixels."""
    facts, problems = [], _own_answers(sample)
    for turn in (*sample.teachers, sample.student):
        try:
            size = inspect_image(turn.image, turn.root, sample.where).size
            facts.append((turn.image, size, turn.declared_size))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError.of(problems)
    return repr((facts, [turn.objects for turn in sample.teachers]))


def _own_answers(sample: Sample) -> list[Problem]:
    asked = sample.student.root / sample.student.image
    return [
        Problem(
            f"a demonstration shows {turn.image!r}, the very image that is asked about",
            sample.where,
            "remove the demonstration, or take another image",
        )
        for turn in sample.teachers
        if is_same_image(turn.root / turn.image, asked)
    ]


def _listed_on_stdin() -> Samples:
    """Images whose paths standard input names, a line each, or with NUL between (``find -print0``)."""
    read = sys.stdin.buffer.read() if is_first_process() else b""
    lines = read.split(b"\0" if b"\0" in read else b"\n")
    names = of_first_process([os.fsdecode(name) for line in lines if (name := line.strip(b"\r\n"))])
    if not names:
        fix = "for example: find photos -name '*.jpg' | qwendet infer MODEL - --output found.jsonl"
        raise DataError("standard input names no image", "-", fix)

    def make(number: int) -> Sample:
        name = names[number]
        name = str(Path(name).absolute().resolve()) if ".." in PurePath(name).parts else name
        return Sample(Turn(name, (), root=Path(PurePath(name).anchor)), where=f"standard input:{number + 1}")

    return Samples(len(names), make)


def _images(names: Sequence[str], root: Path, where: Callable[[int], str]) -> Samples:
    return Samples(len(names), lambda at: Sample(Turn(names[at], (), root=root), where=where(at)))


def _samples_of(path: Path) -> Samples:
    if str(path) == "-":
        return _listed_on_stdin()
    if is_url(path):
        return Samples.joined([_samples_of(file) for file in source_files(path)])
    if path.is_dir():
        names = [str(file.relative_to(path)) for file in files_below(path, IMAGE_SUFFIXES)]
        if not names:
            raise DataError(
                "the folder holds no images", str(path), "give a folder of images or a JSONL file"
            )
        return _images(names, path, lambda at: str(path / names[at]))
    if path.suffix.lower() == ".json" and path.is_file() and is_coco(path):
        root, images, _ = coco_images(path)
        names = list(images)
        return _images(names, root, lambda at: f"{path}: {names[at]}")
    if path.suffix in SUFFIXES and path.is_file():
        shard = open_shard(path)
        return Samples(
            len(shard),
            lambda at: Sample(Turn(shard.image(at), (), root=path.parent), where=shard.where(at)),
        )
    if path.suffix.lower() in (".jsonl", ".json"):
        file = SampleFile(path)
        return Samples(len(file), file.__getitem__)
    if not path.exists() and file_at(path) is None:
        raise DataError(
            "there is no such image, folder, JSONL or COCO file, or shard", str(path), "correct the path"
        )
    return Samples(1, lambda _: sample_of_image(path))


def coco_ids(inputs: Sequence[Path], labels: Sequence[str]) -> CocoIds:
    """The ids that COCO results are written with: those of the COCO file that is asked about.

    Of other inputs images are counted from 0 and labels from 1.
    """
    if len(inputs) == 1 and inputs[0].suffix.lower() == ".json" and is_coco(inputs[0]):
        return coco_images(inputs[0])[1:]
    return {}, {label: number for number, label in enumerate(labels, start=1)}


def with_teachers(samples: Sequence[Sample], config: Config, count: int) -> Sequence[Sample]:
    """Give samples without demonstrations some from the pool, of other images than their own."""
    if count == 0 or all(sample.teachers for sample in samples):
        return samples
    pool = teacher_pool(config, open_samples(config, "train"))
    chosen = choose_teachers(config.train.seed, 0, 0, len(pool), count + 1, ratio=1.0)
    drawn = [pool[index].student for index in chosen]

    labels = config.data.labels or ()

    def shown(number: int) -> Sample:
        sample = samples[number]
        own = sample.teachers or without_own_image(drawn, sample.student, count, labels)
        return replace(sample, teachers=own)

    return Samples(len(samples), shown)
