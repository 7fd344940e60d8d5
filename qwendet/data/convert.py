"""Any data set that is recognised, converted into JSONL: the one way in for ``data convert`` and ``init``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from qwendet.data.formats import detect_format
from qwendet.data.jsonl_writer import ConversionReport, Placement, Progress, write_records
from qwendet.data.voc import find_voc, read_voc, unlisted
from qwendet.errors import DataError
from qwendet.progress import Advance, Tracker

MAX_NOTES = 5
"""Mended annotations that are named, of each kind."""
NOTE_TITLES = {
    "zero_area": "boxes without area left out",
    "clipped": "boxes cut at the image's edge",
    "renamed": "annotations name another image file than the one used",
    "resized": "annotations claim another image size than the real one",
    "unlisted": "annotations in no split list left out",
}


def convert_dataset(
    src: Path, dst: Path, *, source: Literal["voc", "auto"], images: Placement, tracker: Tracker
) -> ConversionReport:
    """Convert a data set, complete or not at all.

    Args:
        src: its folder.
        dst: a folder that is absent or empty.
        source: its format; ``auto`` looks.
        images: as for :func:`convert_voc`.
        tracker: shows progress.

    Raises:
        DataError: if it is broken, or of a format that cannot be converted.
    """
    found = detect_format(src) if source == "auto" else source
    if found == "jsonl":
        raise DataError("this is JSONL already", str(src), "name the file in data.train of the config")
    if found != "voc":
        raise DataError(
            f"{found.upper()} cannot be read yet",
            str(src),
            "convert it to Pascal VOC, or to JSONL with one sample a line",
        )
    num_annotations = sum(1 for _ in (find_voc(src) / "Annotations").glob("*.xml"))
    passes = 1 if images == "reference" else 2
    with tracker(f"converting {src.name}", passes * num_annotations) as advance:
        return convert_voc(src, dst, images=images, progress=_both_passes(advance, num_annotations))


def convert_voc(
    src: Path, dst: Path, *, images: Placement = "copy", progress: Progress | None = None
) -> ConversionReport:
    """Convert a VOC folder into one JSONL file a split, complete or not at all.

    Args:
        src: as for :func:`~qwendet.data.voc.read_voc`; stays as it is.
        dst: a folder that is absent or empty. Gets ``train.jsonl``, ``val.jsonl``, ``test.jsonl``, as far as
            the data has these splits, else ``all.jsonl``.
        images: ``copy`` and ``link`` (hard links: the same file system, no symbolic links, because these
            would leave the data root) put the images into ``dst/images``. ``reference`` leaves them where
            they are: the JSONL names them relative to the VOC folder, and ``data.root`` must be set to that
            folder, which the report's ``data_root`` names.
        progress: called with ``"read"`` or ``"placed"`` and the number of images so far.

    Raises:
        DataError: if ``dst`` holds something, ``src`` is broken (see :func:`~qwendet.data.voc.read_voc`),
            an image cannot be placed. Nothing is left behind then.
    """
    folder = find_voc(src)
    report = write_records(read_voc(folder), folder, dst, images, progress)
    return replace(report, unlisted=unlisted(folder))


def _both_passes(advance: Advance, num_annotations: int) -> Progress:
    """Reading and then placing images, as one count."""

    def show(stage: str, done: int) -> None:
        advance(done if stage == "read" else num_annotations + done, stage)

    return show


def conversion_notes(report: ConversionReport) -> list[str]:
    """What a user should know about a conversion, in words."""
    notes = []
    for kind, title in NOTE_TITLES.items():
        found: tuple[str, ...] = getattr(report, kind)
        if found:
            more = [f"and {len(found) - MAX_NOTES} more"] if len(found) > MAX_NOTES else []
            notes.append("\n  ".join([f"{len(found)} {title}:", *found[:MAX_NOTES], *more]))
    if report.data_root is not None:
        notes.append(f"The images stay where they are: set data.root to {report.data_root}")
    return notes
