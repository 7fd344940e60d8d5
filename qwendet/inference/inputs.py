"""What is asked about: images, folders of images, sample files, and the demonstrations shown before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from qwendet.config.schema import Config
from qwendet.data.formats.coco_layout import is_coco
from qwendet.data.images import IMAGE_SUFFIXES, image_size
from qwendet.data.samples import Sample, SampleFile, Turn
from qwendet.data.teachers import choose_teachers, is_same_image, without_own_image
from qwendet.encoding.dataset import open_samples, teacher_pool
from qwendet.errors import DataError, Problem
from qwendet.files import files_below


def sample_of_image(path: Path) -> Sample:
    """A question about an image file; its folder is the root."""
    return Sample(Turn(image=path.name, objects=(), root=path.parent), where=str(path))


def collect_samples(inputs: Sequence[Path]) -> list[Sample]:
    """The samples of images, folders and JSONL files, each image looked at as far as its header."""
    samples = [sample for path in inputs for sample in _samples_of(path)]
    require_images(samples)
    return samples


def require_images(samples: Iterable[Sample]) -> None:
    """Look at each image as far as its header."""
    problems: list[Problem] = []
    for sample in samples:
        for turn in (*sample.teachers, sample.student):
            try:
                image_size(turn.image, turn.root, sample.where)
            except DataError as error:
                problems += error.problems
        problems += _own_answers(sample)
    if problems:
        raise DataError.of(problems)


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


def _samples_of(path: Path) -> Iterable[Sample]:
    if path.is_dir():
        images = sorted(files_below(path, IMAGE_SUFFIXES))
        if not images:
            raise DataError(
                "the folder holds no images", str(path), "give a folder of images or a JSONL file"
            )
        return [Sample(Turn(str(file.relative_to(path)), (), root=path), where=str(file)) for file in images]
    if path.suffix.lower() == ".json" and path.is_file() and is_coco(path):
        raise DataError(
            "this is a COCO file, and infer takes images, folders of images and JSONL",
            str(path),
            "give the folder of its images, or convert it first: qwendet data convert SRC DST",
        )
    if path.suffix.lower() in (".jsonl", ".json"):
        return SampleFile(path)
    if not path.exists():
        raise DataError("there is no such image, folder or JSONL file", str(path), "correct the path")
    return [sample_of_image(path)]


def with_teachers(samples: Sequence[Sample], config: Config, count: int) -> list[Sample]:
    """Give demonstrations from the pool, of other images, to samples that have none of their own."""
    if count == 0 or all(sample.teachers for sample in samples):
        return list(samples)
    pool = teacher_pool(config, open_samples(config, "train")).samples
    chosen = choose_teachers(config.train.seed, 0, 0, len(pool), count + 1, ratio=1.0)
    drawn = [pool[index].student for index in chosen]
    return [
        sample
        if sample.teachers
        else replace(sample, teachers=without_own_image(drawn, sample.student, count))
        for sample in samples
    ]
