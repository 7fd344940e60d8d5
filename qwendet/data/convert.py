"""Any data set that is recognised, converted into JSONL: the one way in for ``data convert`` and ``init``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qwendet.data.formats import (
    ConversionReport,
    Placement,
    Progress,
    convert_voc,
    detect_format,
    find_voc,
)
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
        images: as for :func:`~qwendet.data.formats.convert_voc`.
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
