"""Large images cut into windows to train on: ``qwendet data tile``.

    any data set ─► windows of each image, with what is left of its boxes ─► DST/<split>.jsonl, DST/images

A box is cut at the window's edge, and dropped where less than ``min_visible`` of it is left.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from random import Random

from qwendet.config.schema import require_tiles
from qwendet.data.archives import Stored, file_at
from qwendet.data.augment import Scene, scene_of
from qwendet.data.copies import copies
from qwendet.data.formats.convert import MAX_PROBLEMS, ConversionReport, complete_or_absent, refuse_occupied
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.jsonl_writer import JsonlWriter
from qwendet.data.formats.placing import Names
from qwendet.data.formats.records import FindingKind, Record, Source
from qwendet.data.images import MIN_IMAGE_SIDE
from qwendet.data.windows import Window, require_windows, windows_of
from qwendet.errors import ConfigError, DataError, Problem
from qwendet.progress import track

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe"})
"""Of images whose windows are JPEG files again; those of others are PNG, without loss."""


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        tiles: side of a window in pixels, or columns x rows.
        overlap: least share of a window's side that its neighbour shows as well.
        min_visible: least share of a box's area that a window must show to keep it.
        negatives: share of the windows without boxes that is kept, drawn by ``seed``.
        seed: of that draw.
        image_dir: folder that the images are in, if not in the data set.
    """

    tiles: int | str
    overlap: float = 0.2
    min_visible: float = 0.3
    negatives: float = 0.1
    seed: int = 0
    image_dir: Path | None = None


def read_tiles(text: str) -> int | str:
    """Read ``--tiles``.

    Raises:
        ConfigError: if it is neither columns x rows nor pixels.

    Example:
        >>> read_tiles("3x2"), read_tiles("640")
        ('3x2', 640)
    """
    value: int | str = int(text) if text.isdecimal() else text
    with suppress(ValueError):
        if require_tiles(value) not in ("off", "auto"):
            return value
    fix = "write columns x rows such as 3x2, or pixels such as 640"
    raise ConfigError(f"expected windows, got {text!r}", "--tiles", fix)


def tile_dataset(src: Path, dst: Path, how: Tiling) -> ConversionReport:
    """Cut the images of a data set into windows, split by split; complete or not at all.

    Args:
        src: a data set of any format; stays as it is.
        dst: a folder that is absent or empty.
        how: the windows.

    Raises:
        ConfigError: for windows that would cut no image.
        DataError: if the data set is broken, or two splits share an image; nothing is left behind then.
    """
    refuse_occupied(dst)
    records = _records(open_source(src, image_dir=how.image_dir), f"looking at {src.name}")
    sizes: set[tuple[int, int]] = set()
    splits: dict[Stored, set[str]] = defaultdict(set)
    for record in records:
        turn = record.sample.student
        sizes |= {turn.declared_size} if turn.declared_size else set()
        path = turn.root / turn.image
        splits[file_at(path) or path].add(record.split)
    require_windows(sizes, how.tiles, how.overlap, MIN_IMAGE_SIDE, "--tiles")
    _require_apart(splits)
    with complete_or_absent(dst) as folder, ExitStack() as stack:
        job = _Job(folder, how, JsonlWriter(folder, stack, has_images=True))
        for record in _records(open_source(src, image_dir=how.image_dir), f"cutting {src.name}"):
            job.add(record)
        if not job.images:
            raise DataError("no window is left: none has a box", str(src), "raise --negatives")
        files = job.writer.finish()
    return replace(job.report(), files=tuple(dst / file for file in files))


def _records(source: Source, doing: str) -> Iterator[Record]:
    """Images of a data set whose annotations are all sound, paths joined with the root.

    Raises:
        DataError: with every problem, 20 at most.
    """
    problems: list[Problem] = []
    with track(doing, source.total) as advance:
        done = 0
        for item in source.items:
            if isinstance(item, Record):
                done += 1
                turn = replace(item.sample.student, root=source.root)
                yield replace(item, sample=replace(item.sample, student=turn))
            elif isinstance(item, Problem) and len(problems) < MAX_PROBLEMS:
                problems.append(item)
            advance(done, "")
    if problems:
        raise DataError.of(problems)


def _require_apart(splits: dict[Stored, set[str]]) -> None:
    """Refuse an image that is in two splits, under one name or two.

    Raises:
        DataError: naming it.
    """
    together: dict[object, set[str]] = defaultdict(set)
    keys = copies(splits)
    for file, key in keys.items():
        together[key] |= splits[file]
    problems = [
        Problem(
            f"the same image is in {' and '.join(sorted(together[key]))}",
            str(file),
            "qwendet data split SRC DST keeps identical images together",
        )
        for file, key in keys.items()
        if len(together[key]) > 1
    ]
    if problems:
        raise DataError.of(problems[:MAX_PROBLEMS])


class _Job:
    """What is being written."""

    def __init__(self, folder: Path, how: Tiling, writer: JsonlWriter) -> None:
        self.folder, self.how, self.writer = folder, how, writer
        self.names = Names()
        self.images: Counter[str] = Counter()
        self.empty: dict[str, Counter[bool]] = defaultdict(Counter)  # windows by whether they were kept
        self.boxes: dict[str, Counter[str]] = defaultdict(Counter)
        self.findings: dict[FindingKind, list[str]] = defaultdict(list)

    def add(self, record: Record) -> None:
        """Cut an image."""
        turn = record.sample.student
        scene = scene_of(turn, record.sample.where)
        windows = windows_of(scene.image.size, self.how.tiles, self.how.overlap)
        for window in windows:
            left, top, right, bottom = window
            view = scene.seen(window, (right - left, bottom - top), self.how.min_visible)
            if view.objects or self._is_kept(record, window):
                self._write(record, window, view)
        for finding in record.findings:
            self.findings[finding.kind].append(finding.note)
        for item in turn.objects:
            if not any(_holds(window, item.bbox_2d) for window in windows):
                note = f"{record.sample.where}: {list(item.bbox_2d)} ({item.desc})"
                self.findings["cut_everywhere"].append(note)

    def _is_kept(self, record: Record, window: Window) -> bool:
        draw = Random(f"{self.how.seed} {record.sample.student.image} {window}").random()
        is_kept = draw < self.how.negatives
        self.empty[record.split][is_kept] += 1
        return is_kept

    def _write(self, record: Record, window: Window, view: Scene) -> None:
        path = PurePosixPath(record.name)
        suffix = path.suffix if path.suffix.lower() in JPEG_SUFFIXES else ".png"
        wanted = str(path.with_name(f"{path.stem}_{window[0]}_{window[1]}{suffix}"))
        name = self.names.give("", f"{record.sample.student.image} {window}", wanted)
        target = self.folder / self.writer.place(record.split, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        view.image.save(target, quality=95, subsampling=0)
        width, height = view.image.size
        turn = replace(record.sample.student, objects=view.objects, width=width, height=height)
        self.writer.add(record.split, turn, name)
        self.images[record.split] += 1
        self.boxes[record.split].update(item.desc for item in view.objects)

    def report(self) -> ConversionReport:
        for split, counts in self.empty.items():
            self.findings["empty_windows"].append(f"{split}: {counts[True]} of {counts.total()}")
        boxes = {split: dict(counts) for split, counts in self.boxes.items()}
        findings = {kind: tuple(notes) for kind, notes in self.findings.items()}
        return ConversionReport((), dict(self.images), boxes, findings=findings)


def _holds(window: Window, box: tuple[float, float, float, float]) -> bool:
    (left, top, right, bottom), (x1, y1, x2, y2) = window, box
    return left <= x1 and top <= y1 and x2 <= right and y2 <= bottom
