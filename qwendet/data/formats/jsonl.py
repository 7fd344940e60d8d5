"""Sample files as a source of records: each sample's own image, without its demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qwendet.data.formats.fitting import fit_objects, image_frame, join_image
from qwendet.data.formats.records import SPLITS, WHOLE, Finding, Item, Record, Source, split_of
from qwendet.data.samples import SampleFile
from qwendet.errors import DataError

IMAGE_FOLDER = "images/"
"""Where ``data convert`` puts images; no part of an image's name."""


def open_jsonl(path: Path, image_dir: Path | None = None, *, may_be_absent: bool = False) -> Source:
    """Open a sample file, or the ``train.jsonl``, ``val.jsonl``, ``test.jsonl``, ``all.jsonl`` of a folder.

    Args:
        path: the file or folder.
        image_dir: the folder that image paths start from; without it that of the file.
        may_be_absent: images need not be there if the samples declare their sizes.

    Raises:
        DataError: if there is no sample.
    """
    files = jsonl_files(path)
    root = image_dir or (path if path.is_dir() else path.parent)
    opened = {split: SampleFile(file, root) for split, file in files.items()}

    def items() -> Iterator[Item]:
        for split, samples in opened.items():
            for index in range(len(samples)):
                try:
                    yield _record(split, samples, index, may_be_absent=may_be_absent)
                except DataError as error:
                    yield from error.problems

    return Source(root, sum(map(len, opened.values())), items())


def jsonl_files(path: Path) -> dict[str, Path]:
    """The sample file of each split; ``all.jsonl`` only where there is no ``train.jsonl``."""
    if path.is_file():
        return {split_of(path.stem) or WHOLE: path}
    names = {split: path / f"{split}.jsonl" for split in (*SPLITS, WHOLE)}
    found = {split: file for split, file in names.items() if file.is_file()}
    if "train" in found:
        found.pop(WHOLE, None)
    return found


def _record(split: str, samples: SampleFile, index: int, *, may_be_absent: bool) -> Record:
    sample = samples[index]
    turn, where = sample.student, sample.where
    image = join_image("", turn.image, where)
    frame = image_frame(
        image, samples.root, where, turn.declared_size, may_be_absent=may_be_absent, tag="the declared size"
    )
    places = ((f"{where}: objects[{at}] ({item.desc})", item) for at, item in enumerate(turn.objects))
    objects, findings = fit_objects(places, frame)
    if sample.teachers:
        findings.append(Finding("demonstrations", f"{where}: {len(sample.teachers)}"))
    found = replace(turn, image=image, objects=objects, width=frame.width, height=frame.height)
    name = image.removeprefix(IMAGE_FOLDER)
    return Record(split, replace(sample, student=found, teachers=()), name, (*frame.findings, *findings))
