"""What a detector is measured on: a JSONL file, or one split of a data set folder of any known format."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from qwendet.data.formats.convert import Conversion, conversion_notes, convert_dataset
from qwendet.data.formats.detect import detect_format
from qwendet.data.formats.jsonl import sample_files
from qwendet.data.formats.records import SAMPLES, TEST_PARTS
from qwendet.data.samples import Sample, Turn
from qwendet.data.sources import samples_of
from qwendet.errors import DataError, Problem, left_out_notes
from qwendet.inference.inputs import Samples, facts_of

MEASURED_SPLITS = ("test", "val", *TEST_PARTS, "all", "train")
"""Splits in the order in which a folder's is chosen: best are images that training never saw."""


class Dataset(NamedTuple):
    """What is measured on, what a user should know of it, and what was left out as broken."""

    samples: list[Sample]
    notes: list[str]
    left_out: list[Problem]


def open_dataset(data: Path, how: Conversion | None = None) -> Dataset:
    """The samples of a JSONL file, or of a folder of any format, their images looked at as far as the header.

    Raises:
        DataError: naming everything that cannot be used.
    """
    how = replace(how or Conversion(), images="reference")
    source = detect_format(data) if how.source == "auto" else how.source
    if source in SAMPLES:
        split, files = _measured_split(data)
        notes = [f"{data} is a folder: its {split} samples are measured."] if data.is_dir() else []
        found = samples_of(files, how.image_dir)
        return _usable(Samples(len(found), found.__getitem__), notes, how)
    with TemporaryDirectory() as temporary:
        converted = Path(temporary) / "data"
        report = convert_dataset(data, converted, how)
        split, files = _measured_split(converted)
        found = samples_of(files, report.data_root)
        samples = [replace(sample, where=f"{data}: {sample.student.image}") for sample in found]
    # They stay where they are, so that data.root, which the last note is about, is nothing to set.
    notes = conversion_notes(replace(report, data_root=None))
    notes = [f"{data} was read where it lies: its {split} split is measured.", *notes]
    usable = _usable(samples, notes, how)
    return usable._replace(left_out=[*report.left_out, *usable.left_out])


def _usable(samples: Sequence[Sample], notes: list[str], how: Conversion) -> Dataset:
    """All samples, or an error that names each broken one; with ``skip_bad`` those that are sound.

    Raises:
        DataError: without ``skip_bad``, and if all are broken.
    """
    usable: list[Sample] = []
    problems: list[Problem] = []
    for index in range(len(samples)):
        try:
            facts_of(sample := samples[index])
            usable.append(sample)
        except DataError as error:
            problems += error.problems
    if problems and not (how.skip_bad and usable):
        raise DataError.of(problems)
    return Dataset(usable, [*notes, *left_out_notes(problems)], problems)


def _measured_split(data: Path) -> tuple[str, Path | Sequence[Path]]:
    if data.is_file():
        return "", data
    found = sample_files(data)
    return next((split, found[split]) for split in MEASURED_SPLITS if split in found)


def foreign_labels(samples: Sequence[Sample], labels: Collection[str], where: str) -> list[str]:
    """Say which labels of the data the model does not know; their objects count as missed.

    Raises:
        DataError: if it knows none of them.
    """
    asked = [sample.student for sample in samples if sample.student.labels is None]
    present = {item.desc for turn in asked for item in turn.objects}
    strange = sorted(present - set(labels))
    if present and len(strange) == len(present):
        raise DataError(
            f"no label in common: the data has {_some(strange)}, the model knows {_some(sorted(labels))}",
            where,
            "give the data the model was trained for, or its labels by --set data.labels=[…]",
        )
    if not strange:
        return []
    boxes = sum(item.desc in strange for turn in asked for item in turn.objects)
    return [f"The model does not know {_some(strange)}: {boxes} boxes count as missed."]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def without_teachers(samples: Sequence[Sample]) -> list[Sample]:
    """The samples without the demonstrations they bring along."""
    none: tuple[Turn, ...] = ()
    return [replace(sample, teachers=none) for sample in samples]
