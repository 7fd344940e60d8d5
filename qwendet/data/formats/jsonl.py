"""Sample files as a source of records: each sample's own image, without its demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qwendet.data.formats.fitting import join_image
from qwendet.data.formats.records import SPLITS, TEST_PARTS, WHOLE, Finding, Item, Record, Source, split_of
from qwendet.data.samples import SampleFile
from qwendet.errors import DataError

IMAGE_FOLDER = "images/"
"""Where ``data convert`` puts images; no part of an image's name."""


def open_jsonl(path: Path, image_dir: Path | None = None) -> Source:
    """Open a sample file, or ``train.jsonl``, ``val.jsonl``, ``test.jsonl``, ``all.jsonl`` of a folder."""
    files = jsonl_files(path)
    root = image_dir or (path if path.is_dir() else path.parent)
    opened = {split: SampleFile(file, root) for split, file in files.items()}

    def items() -> Iterator[Item]:
        for split, samples in opened.items():
            for index in range(len(samples)):
                try:
                    yield _record(split, samples, index)
                except DataError as error:
                    yield from error.problems

    return Source(root, sum(map(len, opened.values())), items())


def jsonl_files(path: Path) -> dict[str, Path]:
    """The sample file of each split; ``all.jsonl`` only where there is no ``train.jsonl``."""
    if path.is_file():
        return {split_of(path.stem) or WHOLE: path}
    names = {split: path / f"{split}.jsonl" for split in (*SPLITS, *TEST_PARTS, WHOLE)}
    found = {split: file for split, file in names.items() if file.is_file()}
    if "train" in found:
        found.pop(WHOLE, None)
    return found


def _record(split: str, samples: SampleFile, index: int) -> Record:
    sample = samples[index]
    turn, where = sample.student, sample.where
    image = join_image("", turn.image, where)
    lost = (Finding("demonstrations", where, str(len(sample.teachers))),) if sample.teachers else ()
    return Record(
        split,
        replace(sample, student=replace(turn, image=image), teachers=()),
        image.removeprefix(IMAGE_FOLDER),
        tuple(f"{where}: objects[{at}] ({item.desc})" for at, item in enumerate(turn.objects)),
        lost,
        size="the declared size",
    )
