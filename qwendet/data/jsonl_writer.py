"""Records of any format to JSONL, a file a split: complete or not at all.

Everything is read and checked first, images are placed last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from qwendet.data.images import resolve_image
from qwendet.data.records import FindingKind, Record
from qwendet.data.samples import DetectedObject, Turn
from qwendet.errors import DataError

Placement = Literal["copy", "link", "reference"]
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion wrote and what it mended.

    Attributes:
        files: the JSONL files.
        images: images per split.
        boxes: boxes per split and label.
        data_root: what ``data.root`` must be set to; None where the images lie beside the JSONL.
        zero_area: boxes without area, left out; these and the following are notes of a :class:`Finding`.
        clipped: boxes cut at the image's edge.
        renamed: annotations that name another file than the image used.
        resized: annotations that claim another size than the image has, which counts.
        unlisted: annotations that no split list names, left out.
    """

    files: tuple[Path, ...]
    images: Mapping[str, int]
    boxes: Mapping[str, Mapping[str, int]]
    data_root: Path | None = None
    zero_area: tuple[str, ...] = ()
    clipped: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def write_records(
    records: Iterator[Record], root: Path, dst: Path, images: Placement, progress: Progress | None
) -> ConversionReport:
    """Write records of any format; their images are relative to ``root``."""
    _refuse_occupied(dst)
    with _complete_or_absent(dst) as partial:
        tally = _write_samples(records, partial, images, progress)
        if images != "reference":
            _place_images(tally.sources, root, partial / "images", images, progress)
    return ConversionReport(
        files=tuple(dst / f"{split}.jsonl" for split in tally.images),
        images=dict(tally.images),
        boxes={split: dict(counts) for split, counts in tally.boxes.items()},
        data_root=root.resolve() if images == "reference" else None,
        zero_area=tuple(tally.notes["zero_area"]),
        clipped=tuple(tally.notes["clipped"]),
        renamed=tuple(tally.notes["renamed"]),
        resized=tuple(tally.notes["resized"]),
    )


def _refuse_occupied(dst: Path) -> None:
    is_empty_folder = dst.is_dir() and not any(dst.iterdir())
    if dst.exists() and not is_empty_folder:
        raise DataError("expected a folder that is absent or empty", str(dst), "give another folder")


@contextmanager
def _complete_or_absent(dst: Path) -> Iterator[Path]:
    """Give a folder beside ``dst`` to fill; it becomes ``dst`` if all went well and vanishes if not."""
    partial = dst.parent / f".{dst.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        if dst.is_dir():
            dst.rmdir()
        partial.rename(dst)
    except OSError as error:
        raise DataError(f"cannot write the data set ({error})", str(dst), "give another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(slots=True)
class _Tally:
    """What has been written so far; ``sources`` holds each image once, with the place that names it."""

    images: Counter[str] = field(default_factory=Counter)
    boxes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    sources: dict[str, str] = field(default_factory=dict)
    notes: dict[FindingKind, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: Record) -> None:
        turn = record.sample.student
        self.images[record.split] += 1
        self.boxes[record.split].update(found.desc for found in turn.objects)
        self.sources[turn.image] = record.sample.where
        for finding in record.findings:
            self.notes[finding.kind].append(finding.note)


def _write_samples(
    records: Iterator[Record], folder: Path, images: Placement, progress: Progress | None
) -> _Tally:
    """Write every record into ``folder/<split>.jsonl``."""
    tally = _Tally()
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}
        for record in records:
            if record.split not in files:
                path = folder / f"{record.split}.jsonl"
                files[record.split] = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
            turn = record.sample.student
            image = turn.image if images == "reference" else f"images/{Path(turn.image).name}"
            files[record.split].write(_line(turn, image))
            tally.add(record)
            if progress:
                progress("read", tally.images.total())
    return tally


def _line(turn: Turn, image: str) -> str:
    """One JSONL line; whole numbers without ``.0``, flags only where set."""
    record: dict[str, Any] = {
        "images": [image],
        "objects": [_object_record(found) for found in turn.objects],
        "width": turn.width,
        "height": turn.height,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _object_record(found: DetectedObject) -> dict[str, Any]:
    corners = [int(value) if value.is_integer() else value for value in found.bbox_2d]
    flags = {name: True for name in ("crowd", "difficult") if getattr(found, name)}
    return {"bbox_2d": corners, "desc": found.desc, **flags}


def _place_images(
    sources: Mapping[str, str], root: Path, folder: Path, images: Placement, progress: Progress | None
) -> None:
    """Copy or hard-link each image of ``sources`` (path relative to ``root`` ─► where it is named)."""
    folder.mkdir()
    for done, (image, where) in enumerate(sources.items(), start=1):
        source = resolve_image(image, root, where)
        target = folder / Path(image).name
        if images == "copy":
            shutil.copyfile(source, target)
        else:
            _link(source, target, where)
        if progress:
            progress("placed", done)


def _link(source: Path, target: Path, where: str) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        raise DataError(
            f"cannot make a hard link to {source} ({error.strerror})",
            where,
            "copy the images instead, or convert into a folder on the same file system",
        ) from error
