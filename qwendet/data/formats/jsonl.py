"""Sample files and shards as a source of records: each sample's own image, without its demonstrations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from qwendet.data.formats.fitting import join_image
from qwendet.data.formats.records import (
    SPLITS,
    TEST_PARTS,
    WHOLE,
    Finding,
    Item,
    Record,
    Source,
    or_problems,
    split_of,
)
from qwendet.data.samples import SampleSource
from qwendet.data.sources import samples_of, shards_by_split

IMAGE_FOLDER = "images/"
"""Where ``data convert`` puts images; no part of an image's name."""


def open_samples(path: Path, image_dir: Path | None = None) -> Source:
    """Open a sample file or shards, or a folder of them, such as ``train.jsonl`` and ``val.jsonl``."""
    root = path if path.is_dir() else path.parent
    opened = {split: samples_of(own, image_dir or root) for split, own in sample_files(path).items()}

    def items() -> Iterator[Item]:
        for split, samples in opened.items():
            if samples.form:
                yield Finding("frame", f"{samples.path}: {samples.form}")
            for index in range(len(samples)):
                yield from or_problems(_record(split, samples, index, image_dir or root))

    return Source(image_dir or root, sum(map(len, opened.values())), items())


def sample_files(path: Path) -> Mapping[str, Path | Sequence[Path]]:
    """The sample file of each split, or its shards; raises :class:`DataError` if there are none."""
    return jsonl_files(path) or shards_by_split(path)


def jsonl_files(path: Path) -> dict[str, Path]:
    """The sample file of each split; ``all.jsonl`` only where there is no ``train.jsonl``."""
    if path.is_file():
        return {split_of(path.stem) or WHOLE: path}
    names = {split: path / f"{split}.jsonl" for split in (*SPLITS, *TEST_PARTS, WHOLE)}
    found = {split: file for split, file in names.items() if file.is_file()}
    if "train" in found:
        found.pop(WHOLE, None)
    return found


def _record(split: str, samples: SampleSource, index: int, root: Path) -> Iterator[Record]:
    sample = samples[index]
    turn, where = sample.student, sample.where
    image = join_image(_below(turn.root, root), turn.image, where)
    lost = (Finding("demonstrations", where, str(len(sample.teachers))),) if sample.teachers else ()
    yield Record(
        split,
        replace(turn, image=image, root=Path()),
        where,
        _name(image.removeprefix(IMAGE_FOLDER)),
        tuple(f"{where}: objects[{at}] ({item.desc})" for at, item in enumerate(turn.objects)),
        lost,
        size="the declared size",
    )


def _name(image: str) -> str:
    """What an image is placed as: shards become folders, and an image without a name gets an ending."""
    name = re.sub(r"\.(tar|parquet)/", "/", image)
    return name if PurePosixPath(name).suffix else f"{name}.png"


def _below(folder: Path, root: Path) -> str:
    """A shard's folder seen from the data set's."""
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) and folder != root else ""
