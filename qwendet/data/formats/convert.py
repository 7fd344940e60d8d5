"""Any data set in, any format out, complete or not at all: the one way in for ``data convert`` and ``init``.

SRC ─► open_source ─► Labels │ Record │ Finding │ Problem ─► a writer ─► images placed ─► DST
"""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from qwendet.data.formats.box_frames import BoxFrame
from qwendet.data.formats.coco_writer import CocoWriter
from qwendet.data.formats.conversation_writer import LlamaFactoryWriter, SwiftWriter
from qwendet.data.formats.detect import detect_format, open_source
from qwendet.data.formats.jsonl_writer import JsonlWriter
from qwendet.data.formats.placing import Names, Placement, place_images, save_image
from qwendet.data.formats.records import (
    FINDING_TITLES,
    HARMLESS,
    SAMPLES,
    Finding,
    FindingKind,
    Format,
    Labels,
    Record,
    Source,
    Target,
)
from qwendet.data.formats.shard_writer import ShardWriter, pack
from qwendet.data.formats.voc_writer import VocWriter
from qwendet.data.formats.writer import Writer
from qwendet.data.formats.yolo_writer import YoloWriter, ring_of
from qwendet.data.samples import DetectedObject, Turn
from qwendet.errors import ConfigError, DataError, Problem
from qwendet.files import atomic_folder
from qwendet.progress import Advance, no_advance, track

SHARDS: tuple[Target, ...] = ("webdataset", "parquet")
WRITERS: Mapping[Target, Callable[..., Writer]] = {
    "jsonl": JsonlWriter,
    "webdataset": partial(ShardWriter, suffix=".tar"),
    "parquet": partial(ShardWriter, suffix=".parquet"),
    "coco": CocoWriter,
    "voc": VocWriter,
    "yolo": YoloWriter,
    "yolo-seg": partial(YoloWriter, is_segmented=True),
    "swift": SwiftWriter,
    "llamafactory": LlamaFactoryWriter,
}
MAX_NOTES = 5
"""Repaired annotations that are named, of each kind."""
MAX_PROBLEMS = 20
"""Broken annotations that are named before a conversion gives up."""
LEFT_OUT_FILE = "left-out.txt"
"""What ``--skip-bad`` left out, a line each."""
IMAGE_HINTS: Mapping[Target, str] = {
    "jsonl": "set data.root to {}",
    "coco": "file_name starts from {}",
    "swift": "their paths start from {}",
    "llamafactory": "their paths start from {}",
    "voc": "put those of {} into JPEGImages, beside Annotations",
    "yolo": "put those of {} into images/, beside labels/: YOLO looks there",
    "yolo-seg": "put those of {} into images/, beside labels/: YOLO looks there",
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """How to convert.

    Attributes:
        source: format of the data set; ``auto`` looks into it.
        target: format to write.
        images: ``copy`` and ``link`` (hard links: the same file system) put the images beside what is
            written. ``reference`` leaves them where they are; they need not even be there if the data set
            tells their sizes.
        image_dir: folder that the source's images are in, if not in the data set.
        is_strict: refuse what would be repaired or left out.
        skip_bad: leave out images with broken annotations instead of refusing them.
        frame: of the boxes of conversations; ``None`` tells it from them.
        split: the only one to read; ``None`` reads all.
    """

    source: Format | str = "auto"
    target: Target = "jsonl"
    images: Placement = "copy"
    image_dir: Path | None = None
    is_strict: bool = False
    skip_bad: bool = False
    frame: BoxFrame | None = None
    split: str | None = None

    def options(self) -> list[str]:
        """How the source is read, in words of the command line."""
        given = {"--from": self.source, "--image-dir": self.image_dir, "--frame": self.frame}
        words = [
            word
            for name, value in given.items()
            if value not in (None, "auto")
            for word in (name, str(value))
        ]
        return words + ["--skip-bad"] * self.skip_bad


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion wrote and what it repaired.

    Attributes:
        files: what a user opens.
        data_root: what the images' paths start from where they stay; None where they lie beside.
        findings: what was repaired, left out or is worth knowing, in words, by kind.
        left_out: broken images and annotations that ``skip_bad`` left out.
    """

    files: tuple[Path, ...]
    images: Mapping[str, int]
    boxes: Mapping[str, Mapping[str, int]]
    target: Target = "jsonl"
    data_root: Path | None = None
    findings: Mapping[FindingKind, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[Problem, ...] = ()


def convert_dataset(src: Path, dst: Path, how: Conversion) -> ConversionReport:
    """Convert a data set, complete or not at all.

    Raises:
        DataError: if it is broken; with every problem, 20 at most. Nothing is left behind then.
    """
    if how.target == "jsonl" and how.source in ("auto", "jsonl") and detect_format(src) == "jsonl":
        fix = f"use it as it is: qwendet init DIR --data {shlex.quote(str(src))}; or give --to another format"
        raise DataError("this is JSONL already", str(src), fix)
    refuse_occupied(dst)
    is_reference = how.images == "reference"
    source = open_source(
        src, how.source, how.image_dir, may_be_absent=is_reference, frame=how.frame, split=how.split
    )
    return write_source(source, src.name, dst, how)


def write_source(
    source: Source,
    name: str,
    dst: Path,
    how: Conversion,
    split_of: Callable[[Record], str] = lambda record: record.split,
) -> ConversionReport:
    """Write an opened data set; without a ``name`` its items show themselves how far they are."""
    refuse_occupied(dst)
    with complete_or_absent(dst) as folder:
        reading = track(f"reading {name}", source.total) if name else nullcontext(no_advance)
        job = _Job(source, folder, how)
        with job.writer.files, reading as advance:
            files = job.write(split_of, advance)
        job.judge()
        if job.placed and how.images != "reference":
            placing = (
                pack(job.placed, source.root, folder)
                if how.target in SHARDS
                else place_images(job.placed, source.root, folder, how.images)
            )
            with track(f"placing images of {name}", len(job.placed)) as advance:
                for done in placing:
                    advance(done, "")
    return ConversionReport(
        files=tuple(dst / file for file in files),
        images=dict(job.images),
        boxes={split: dict(counts) for split, counts in job.boxes.items()},
        target=how.target,
        data_root=source.root.resolve() if how.images == "reference" else None,
        findings={kind: tuple(notes) for kind, notes in job.findings.items() if notes},
        left_out=tuple(job.problems),
    )


def sound_records(source: Source, doing: str, *, skip_bad: bool = False) -> Iterator[Record]:
    """Images of a data set, paths joined with its root; refused if an annotation is broken.

    With ``skip_bad`` broken ones are passed over, as long as others are left.

    Raises:
        DataError: after the last image, with every problem, 20 at most.
    """
    problems: list[Problem] = []
    done = 0
    with track(doing, source.total) as advance:
        for item in source.items:
            if isinstance(item, Record):
                done += 1
                yield replace(item, turn=replace(item.turn, root=source.root))
            elif isinstance(item, Problem) and len(problems) < MAX_PROBLEMS:
                problems.append(item)
            advance(done, "")
    if problems and not (skip_bad and done):
        raise DataError.of(problems)


class _Job:
    """One conversion: what is being written, and what has been seen."""

    def __init__(self, source: Source, folder: Path, how: Conversion) -> None:
        if how.target in SHARDS and how.images != "copy":
            what, fix = "shards hold the images themselves", "leave it out, or write --to jsonl"
            raise ConfigError(what, "--images", fix)
        self.source = source
        self.folder = folder
        self.how = how
        self.writer = WRITERS[how.target](folder, has_images=how.images != "reference")
        self.names = Names(flat=how.target == "voc", by_split=how.target.startswith("yolo"))
        self.keeps_paths = how.target in SHARDS or (
            how.images == "reference" and how.target not in ("voc", "yolo", "yolo-seg")
        )
        self.placed: dict[str, tuple[str, str]] = {}
        self.seen: set[tuple[str, str, tuple[str, ...] | None]] = set()
        self.images: Counter[str] = Counter()
        self.boxes: dict[str, Counter[str]] = defaultdict(Counter)
        self.findings: dict[FindingKind, list[str]] = defaultdict(list)
        self.declared: dict[str, None] = {}
        self.problems: list[Problem] = []

    def write(self, split_of: Callable[[Record], str], advance: Advance) -> list[str]:
        """Write every record; refuse broken ones unless they are to be skipped."""
        for item in self.source.items:
            if isinstance(item, Record):
                self._add(item, split_of(item))
                advance(self.images.total(), "")
            elif isinstance(item, Labels):
                for label in item.names:
                    self.writer.number_of(label)
                self.declared |= dict.fromkeys(item.names)
            elif isinstance(item, Finding):
                self.findings[item.kind].append(item.note)
            else:
                self.problems.append(item)
            if len(self.problems) >= MAX_PROBLEMS and not self.how.skip_bad:
                raise DataError.of(self.problems)
        if self.problems and not self.how.skip_bad:
            raise DataError.of(self.problems)
        if not self.images:
            is_empty = not self.problems and self.findings.keys() <= {"no_split", "unused"}
            what = "the data set holds no image" if is_empty else "no image is left"
            fix = "give the folder that holds its images" if is_empty else "fix what was left out"
            nothing = Problem(what, str(self.source.root), fix)
            raise DataError.of([nothing, *self.problems[:MAX_PROBLEMS]])
        return self.writer.finish()

    def _add(self, record: Record, split: str) -> None:
        turn = record.turn
        name = turn.image if self.keeps_paths else self.names.give(split, turn.image, record.name)
        try:
            self.writer.add(split, turn, name)
        except DataError as error:
            self.problems += [replace(problem, where=record.where) for problem in error.problems]
            return
        if not self.keeps_paths and not name.endswith(Path(record.name).name):
            self.findings["placed_as"].append(f"{turn.image!r} is now {name!r}")
        place, note = self.writer.place(split, name), f"{record.where}: {turn.image!r}"
        if (split, place, turn.labels) in self.seen:
            self.findings["same_image"].append(note)
        self.seen.add((split, place, turn.labels))
        if turn.pixels is None:
            self.placed[place] = (turn.image, record.where)
        else:
            save_image(turn.pixels, self.folder / place)
        self.images[split] += 1
        self.boxes[split].update(found.desc for found in turn.objects)
        for kind in self._lost(turn):
            self.findings[kind].append(note)
        for finding in record.findings:
            self.findings[finding.kind].append(finding.note)

    def _lost(self, turn: Turn) -> Iterator[FindingKind]:
        """What the target cannot hold of an image's annotations."""
        target = self.how.target
        if target in ("swift", "llamafactory") and any(own.crowd or own.difficult for own in turn.objects):
            yield "flags_lost"
        is_federated = turn.neg_labels is not None and target != "coco"
        if target not in SAMPLES and (turn.labels is not None or is_federated):
            yield "labels_lost"
        if any(map(self._loses, turn.objects)):
            yield "segmentations_lost"

    def _loses(self, found: DetectedObject) -> bool:
        """Whether an object has a polygon or a mask that is not written."""
        if self.how.target in (*SAMPLES, "coco") or found.segmentation is None:
            return False
        return self.how.target != "yolo-seg" or ring_of(found) is None

    def judge(self) -> None:
        """Tell what only the end shows; refuse findings if that is wished."""
        used = set().union(*self.boxes.values())
        self.findings["unused"] += [repr(label) for label in self.declared if label not in used]
        refused = [
            Problem(f"{FINDING_TITLES[kind]}: {note}", "", "fix it, or convert without --strict")
            for kind, notes in self.findings.items()
            if kind not in HARMLESS
            for note in notes
        ]
        if refused and self.how.is_strict:
            raise DataError.of(refused[:MAX_PROBLEMS])
        if self.problems:
            lines = "".join(f"{problem.where}: {problem.what}\n" for problem in self.problems)
            (self.folder / LEFT_OUT_FILE).write_text(lines, encoding="utf-8", errors="backslashreplace")


def refuse_occupied(dst: Path) -> None:
    """Refuse a destination that holds something."""
    is_empty_folder = dst.is_dir() and not any(dst.iterdir())
    if os.path.lexists(dst) and not is_empty_folder:
        raise DataError("expected a folder that is absent or empty", str(dst), "give another folder")


@contextmanager
def complete_or_absent(dst: Path) -> Iterator[Path]:
    """Give a folder beside ``dst`` to fill; it becomes ``dst`` if all went well and vanishes if not."""
    try:
        with atomic_folder(dst, sync=False) as partial:
            yield partial
    except OSError as error:
        raise DataError(f"cannot write the data set ({error})", str(dst), "give another folder") from error


def conversion_notes(report: ConversionReport) -> list[str]:
    """What a user should know about a conversion, in words."""
    notes = [
        _listed(f"{len(found)} {FINDING_TITLES[kind]}:", found) for kind, found in report.findings.items()
    ]
    if report.left_out:
        lines = [f"{problem.where}: {problem.what}" for problem in report.left_out]
        notes.append(_listed(f"Left out {len(lines)}, all listed in {LEFT_OUT_FILE}:", lines, MAX_PROBLEMS))
    if report.data_root is not None:
        notes.append(f"The images stay where they are: {IMAGE_HINTS[report.target].format(report.data_root)}")
    return notes


def _listed(title: str, lines: tuple[str, ...] | list[str], limit: int = MAX_NOTES) -> str:
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n  ".join([title, *lines[:limit], *more])
