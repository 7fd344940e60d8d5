"""One pass over every sample file, in pieces of some hundred lines, each judged by a worker process.

    file ─► pieces of lines ─► worker: Sample, image header, every rule
                               └► SplitStats, Findings ─► merged

Only what the checks of the whole data set need is kept of a sample: its labels, boxes and images as
numbers, so memory grows by some 300 bytes a sample and not with the files. Nothing here imports torch, so
that a worker starts in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

from qwendet.checks.config.samples import RULES, Split, Visit, is_counted
from qwendet.checks.config.stats import LabelUse, SeenImage, SplitStats
from qwendet.checks.runner import Findings
from qwendet.config.schema import Config
from qwendet.data.formats.fitting import show
from qwendet.data.images import (
    AbsentImageError,
    ForbiddenImageError,
    ImageFacts,
    inspect_image,
)
from qwendet.data.samples import Sample, SampleLine, SampleSource, Turn
from qwendet.data.segmentation import extent, fits
from qwendet.data.sources import samples_of
from qwendet.errors import DataError, Problem
from qwendet.families.family import PixelLimits
from qwendet.progress import track

PARSE = "config.data.samples"
CUT = "config.data.cut"
OPEN = "config.images.open"
PASS_IDS = (PARSE, CUT, OPEN, *RULES)
LEAVES_OUT = frozenset({PARSE, OPEN, *(id for id, rule in RULES.items() if rule.leaves_out)})
"""Findings that ``data.on_bad_sample: skip`` leaves out with their sample."""
LEFT_OUT = "left out (data.on_bad_sample: skip)"
PIECE_SAMPLES = 256
FEW_SAMPLES = 2000
"""Up to so many are judged faster than worker processes start."""
SOME = 4
"""Pieces a worker that are read before their results are taken in."""
Piece = TypeVar("Piece")

Depth = Literal["none", "header", "full"]


@dataclass(frozen=True)
class Thoroughness:
    """How far the checks go.

    Attributes:
        images: ``none`` opens no image, ``header`` reads header, EXIF and end mark, ``full`` every pixel.
        tokens: count the tokens of every sample, which needs the tokenizer and so transformers.
        workers: processes that read samples and images.
    """

    images: Depth = "header"
    tokens: bool = False
    workers: int = 1


@dataclass(frozen=True)
class Task:
    """How every piece of a source is read.

    Attributes:
        split: which of its sources.
        depth: ``none`` opens no image, ``header`` reads header, EXIF and end mark, ``full`` every pixel.
        limits: how the model's processor resizes, if that is known.
    """

    config: Config
    split: Split
    path: Path
    depth: Depth
    limits: PixelLimits | None


Lines = Sequence[tuple[int, SampleLine]]
"""Some samples of a source as they are written, each with its number, from 1."""


def scan_files(
    config: Config,
    files: Mapping[Split, Path | Sequence[Path]],
    how: Thoroughness,
    limits: PixelLimits | None = None,
) -> tuple[dict[Split, SplitStats], dict[str, Findings]]:
    """Hold every sample of every file against every rule."""
    findings = {id: Findings(id) for id in PASS_IDS}
    root = None if config.data.root is None else Path(config.data.root)
    sources = {split: samples_of(path, root, split, may_be_empty=True) for split, path in files.items()}
    splits = {split: SplitStats(source.path, source=source) for split, source in sources.items()}
    pieces = [
        pieces_of(Task(config, split, source.path, how.images, limits), source)
        for split, source in sources.items()
    ]
    names = ", ".join(source.path.name for source in sources.values())
    with track(f"checking {names}", sum(map(len, sources.values()))) as advance:
        for judged in in_order(scan_piece, chain.from_iterable(pieces), how.workers):
            take_in(splits, findings, judged)
            advance(sum(stats.num_samples for stats in splits.values()), "")
    return splits, findings


Judged = tuple[Split, SplitStats, dict[str, Findings]]
"""Of some samples: their split, what was seen of them, and what the rules found, by id."""


def take_in(splits: Mapping[Split, SplitStats], findings: Mapping[str, Findings], judged: Judged) -> None:
    """Add what a piece of work found to what earlier ones did."""
    split, seen, found = judged
    splits[split].add(seen)
    for id, few in found.items():
        findings[id].merge(few)


def in_order(judge: Callable[[Piece], Judged], pieces: Iterable[Piece], workers: int) -> Iterator[Judged]:
    """What ``judge`` makes of each piece, in their order, by worker processes that take some at a time.

    The first few samples are judged by this process: that is faster than others start.
    """
    waiting = iter(pieces)
    yield from map(judge, islice(waiting, None if workers == 1 else FEW_SAMPLES // PIECE_SAMPLES))
    if not (some := list(islice(waiting, SOME * workers))):
        return
    # spawn: a fork of a process that has threads (torch, a progress bar) may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while some:
            yield from pool.map(judge, some)
            some = list(islice(waiting, SOME * workers))


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pieces_of(task: Task, source: SampleSource) -> Iterator[tuple[Task, Lines]]:
    """The samples of a source, at most ``PIECE_SAMPLES`` at a time."""
    for start in range(0, len(source), PIECE_SAMPLES):
        some = range(start, min(start + PIECE_SAMPLES, len(source)))
        yield task, [(index + 1, source.line(index)) for index in some]


def scan_piece(work: tuple[Task, Lines]) -> Judged:
    """Hold some samples of a source against every rule."""
    task, lines = work
    reading = Pass(task)
    for number, line in lines:
        reading.read(line, number)
    return reading.judged()


class Pass:
    """The pass over one piece of a file, or over one split of an annotated data set."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.stats = SplitStats(task.path)
        self.findings = {id: Findings(id) for id in PASS_IDS}
        self.facts: dict[tuple[Path, str], ImageFacts] = {}  # a pool's images are shown again and again
        # Training leaves broken samples out; a demonstration that is drawn from a pool is needed.
        self.is_lenient = task.config.data.on_bad_sample == "skip" and task.split != "teachers"

    def judged(self) -> Judged:
        """What it saw and found."""
        return (
            self.task.split,
            self.stats,
            {id: few for id, few in self.findings.items() if few.seconds or few.counts},
        )

    def read(self, line: SampleLine, number: int) -> None:
        """Take in one line."""
        self.stats.num_samples += 1
        samples: list[Sample] = []
        raw = b"" if isinstance(line.raw, DataError) else line.raw
        if raw and not raw.endswith(b"\n") and not _is_json(raw):
            shown = raw[-30:].decode("utf-8", "replace")
            what = f"the file ends in mid-line: …{shown!r}; what followed is missing"
            self.findings[CUT].add([Problem(what, line.where, "write or fetch the whole file again")])
            return
        self._holds(PARSE, partial(_parse, line, samples))
        if not samples:
            self._keep_raw_boxes(raw, line, number)
            return
        self.stats.num_parsed += 1
        self.visit(samples[0], number)
        self.stats.add_line(hashlib.blake2b(raw.strip(), digest_size=8).digest(), number)

    def _keep_raw_boxes(self, raw: bytes, line: SampleLine, number: int) -> None:
        """Keep the boxes of a line that is no sample: in which way they are wrong shows in all of them."""
        try:
            record = json.loads(raw)
            turn = record.get("student", record)
            boxes = [item["bbox_2d"] for item in turn["objects"]]
            size = self._raw_size(turn, line)
            for x1, y1, x2, y2 in boxes:
                self.stats.boxes.extend((float(x1), float(y1), float(x2), float(y2), *size, number))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
            return  # nothing that could be read as boxes; the line itself is reported already

    def _raw_size(self, turn: Mapping[str, Any], line: SampleLine) -> tuple[float, float]:
        """Declared size of a line that is no sample, else that of its image, else zeros."""
        if turn.get("width") and turn.get("height"):
            return float(turn["width"]), float(turn["height"])
        try:
            if self.task.depth != "none":
                return inspect_image(str(turn["images"][0]), line.root, line.where).size
        except DataError:
            pass  # whether it can be opened is asked of samples alone
        return 0.0, 0.0

    def visit(self, sample: Sample, number: int, places: Sequence[str] = ()) -> None:
        """Hold a sample against every rule, and count it; ``places`` as in :class:`Visit`."""
        # Of a pool's sample, only the student is shown.
        teachers = () if self.task.split == "teachers" else sample.teachers
        names = [f"teachers[{index}]." for index in range(len(teachers))]
        names.append("student." if sample.teachers else "")
        visits = [
            self._open(turn, sample, name, places)
            for turn, name in zip((*teachers, sample.student), names, strict=True)
        ]
        verdicts = [is_open and self._is_usable(visit) for is_open, visit in visits]
        is_usable = all(verdicts)
        self.stats.num_usable += is_usable
        if is_usable or not self.is_lenient:
            for _, visit in visits:
                self._count(visit, number)

    def _open(self, turn: Turn, sample: Sample, name: str, places: Sequence[str]) -> tuple[bool, Visit]:
        """Open a turn's image; whether that could be done, and what the rules see."""
        task, facts = self.task, self.facts
        is_open = True
        if task.depth != "none" and (turn.root, turn.image) not in facts:
            is_open = self._holds(OPEN, partial(self._inspect, turn, sample.where))
        seen = facts.get((turn.root, turn.image))
        visit = Visit(task.config, task.split, turn, sample, name, seen, task.limits, places)
        return is_open, visit

    def _inspect(self, turn: Turn, where: str) -> list[Problem]:
        try:
            is_full = self.task.depth == "full"
            self.facts[turn.root, turn.image] = inspect_image(turn.image, turn.root, where, decode=is_full)
        except (AbsentImageError, ForbiddenImageError) as error:
            self.stats.num_absent += isinstance(error, AbsentImageError)
            self.stats.num_forbidden += isinstance(error, ForbiddenImageError)
            self.stats.first_absent = self.stats.first_absent or error.problems[0]
            raise
        return []

    def _is_usable(self, visit: Visit) -> bool:
        """Hold a turn against every rule; whether those of ``LEAVES_OUT`` let it pass."""
        held = {id: self._holds(id, partial(rule.find, visit)) for id, rule in RULES.items()}
        if any(item.segmentation is not None for item in visit.turn.objects):
            held[PARSE] = self._holds(PARSE, partial(_masks_are_of, visit))
            self.findings[PARSE].collect(partial(_misfits, visit), "note")
        return all(held[id] for id in LEAVES_OUT & held.keys())

    def _holds(self, id: str, find: Callable[[], Iterable[Problem]]) -> bool:
        return self.findings[id].collect(find, LEFT_OUT if self.is_lenient and id in LEAVES_OUT else "")

    def _count(self, visit: Visit, number: int) -> None:
        stats, turn, is_student = self.stats, visit.turn, visit.turn is visit.sample.student
        stats.images.append(_seen(visit, number))
        for label in turn.labels or ():
            stats.asked.setdefault(label, visit.where)
        for item in turn.objects:
            use = stats.labels.setdefault(item.desc, LabelUse(visit.where))
            use.num_boxes += is_student and is_counted(item)
        if is_student:
            stats.num_negatives += not turn.objects
            stats.num_with_teachers += bool(visit.sample.teachers)
            width, height = visit.size or (0, 0)
            for item in turn.objects:
                stats.num_boxes += is_counted(item)
                stats.boxes.extend((*item.bbox_2d, width, height, number))


def _seen(visit: Visit, number: int) -> SeenImage:
    turn, facts = visit.turn, visit.facts
    answer = _digest(sorted((*item.bbox_2d, item.desc) for item in turn.objects))
    use = (turn is not visit.sample.student, answer, _digest(sorted(turn.labels)) if turn.labels else 0)
    if facts is None:
        path = os.path.normpath(turn.root / turn.image)
        return SeenImage(number, turn.image, path, path, 0, visit.size, *use)
    return SeenImage(number, turn.image, facts.path, facts.file_id, facts.num_bytes, facts.size, *use)


def _digest(values: object) -> int:
    """A number that is the same in every process, which ``hash`` of a text is not."""
    return zlib.crc32(repr(values).encode())


def _masks_are_of(visit: Visit) -> Iterable[Problem]:
    """Every mask has the size of its image."""
    if visit.size is not None:
        visit.turn.require_masks_of(visit.size, visit.where, visit.field)
    return ()


def _misfits(visit: Visit) -> Iterator[Problem]:
    """Polygons and masks that are elsewhere than their boxes, of which the boxes are trained."""
    for index, item in enumerate(visit.turn.objects):
        if item.segmentation is not None and not fits(around := extent(item.segmentation), item.bbox_2d):
            what = f"its polygon or mask extends over {'nothing' if around is None else show(around)}"
            fix = "see which of the two is wrong; the box is what is trained"
            yield Problem(f"{visit.box(index)}, but {what}", visit.place(index), fix)


def _parse(line: SampleLine, samples: list[Sample]) -> list[Problem]:
    samples.append(line.parse())
    return []


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True
