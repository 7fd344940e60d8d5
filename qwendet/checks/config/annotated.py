"""One pass over an annotated data set (COCO, VOC, YOLO): its records meet the rules that samples do.

    data set ─► Record, boxes and sizes as written ─► batches ─► worker: every rule of ``samples``
             └► Finding, Problem of its reader ─► config.data.annotations, config.data.samples

Nothing is repaired, and nothing is written.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from qwendet.checks.config.sample_files import ORDER, PARTS, Given
from qwendet.checks.config.samples import Split
from qwendet.checks.config.scan import (
    PARSE,
    PIECE_SAMPLES,
    Judged,
    Pass,
    Task,
    Thoroughness,
    in_order,
    scan_files,
    take_in,
)
from qwendet.checks.config.stats import SplitStats
from qwendet.checks.runner import Findings
from qwendet.config.schema import Config
from qwendet.data.formats.box_frames import BoxFrame
from qwendet.data.formats.detect import open_written
from qwendet.data.formats.fitting import show
from qwendet.data.formats.records import (
    FINDING_TITLES,
    HARMLESS,
    WHOLE,
    Finding,
    FindingKind,
    Format,
    Labels,
    Record,
)
from qwendet.data.samples import Sample
from qwendet.errors import DataError, Problem
from qwendet.families.family import PixelLimits
from qwendet.progress import track

ANNOTATIONS = "config.data.annotations"
COUNTED = HARMLESS | {"unlabelled"}
"""What the formats themselves allow: counted, and no failure."""
MAX_NOTES = 5
"""Places that are named of each kind."""


def scan_data(
    config: Config, given: Given, how: Thoroughness, limits: PixelLimits | None = None
) -> tuple[dict[Split, SplitStats], dict[str, Findings]]:
    """Hold sample files and annotated data sets against every rule; as :func:`scan_files`."""
    splits, findings = scan_files(config, given.files, how, limits)
    for path, kind in given.datasets.items():
        task = Task(config, "train", path, how.images, limits)
        reader = _Reader(task, kind, given.frame)
        for judged in in_order(_judge, reader.batches(), how.workers):
            take_in(reader.splits, findings, judged)
        reader.report(findings)
        for split, stats in reader.splits.items():
            if split in splits:
                what = f"{splits[split].path} and {path} both hold {split} samples"
                raise DataError(what, str(path), "give one of them")
            splits[split] = stats
    return {split: splits[split] for split in ORDER if split in splits}, findings


class _Numbered(NamedTuple):
    """A sample, its number in its split, and where each of its objects is written."""

    number: int
    sample: Sample
    places: list[str]


Batch = tuple[Task, Sequence[_Numbered]]


def _judge(batch: Batch) -> Judged:
    """Hold some samples of a split against every rule."""
    task, numbered = batch
    reading = Pass(task)
    for number, sample, places in numbered:
        reading.stats.num_samples += 1
        reading.stats.num_parsed += 1
        reading.visit(sample, number, places)
        turn = sample.student
        digest = hashlib.blake2b(repr((turn.image, turn.objects)).encode(), digest_size=8).digest()
        reading.stats.add_line(digest, number)
    return reading.judged()


@dataclass
class _Reader:
    """Reads a data set into batches of samples, and notes what its reader finds.

    Attributes:
        frame: of its boxes; ``None`` is what its reader finds.
    """

    task: Task
    format: Format
    frame: BoxFrame | None
    splits: dict[Split, SplitStats] = field(default_factory=dict)
    declared: dict[str, None] = field(default_factory=dict)
    notes: dict[FindingKind, Findings] = field(default_factory=dict)
    broken: Findings = field(default_factory=lambda: Findings(PARSE))
    odd: Findings = field(default_factory=lambda: Findings(ANNOTATIONS))

    def batches(self) -> Iterator[Batch]:
        """All samples of the data set, some of one split at a time."""
        path, root = self.task.path, self.task.config.data.root
        source = open_written(path, self.format, None if root is None else Path(root), frame=self.frame)
        waiting: dict[Split, list[_Numbered]] = defaultdict(list)
        with track(f"checking {path.name}", source.total) as advance:
            for item in source.items:
                if isinstance(item, Record):
                    split = PARTS[item.split]
                    waiting[split].append(self._numbered(item, split, source.root))
                    if len(waiting[split]) == PIECE_SAMPLES:
                        yield replace(self.task, split=split), waiting.pop(split)
                    advance(sum(len(stats.places) for stats in self.splits.values()), "")
                elif isinstance(item, Labels):
                    self.declared |= dict.fromkeys(item.names)
                elif isinstance(item, Finding):
                    self._note(item)
                else:
                    self.broken.add([item])
        for split, batch in waiting.items():
            yield replace(self.task, split=split), batch
        if not self.splits and not self.broken.num_failed:
            raise DataError("the data set holds no image", str(path), "give the folder that holds its images")

    def _numbered(self, record: Record, split: Split, root: Path) -> _Numbered:
        """A record as a sample, without boxes that no sample could have."""
        name = "" if record.split == WHOLE else record.split
        stats = self.splits.setdefault(split, SplitStats(self.task.path, name, self.format))
        for finding in record.findings:
            self._note(finding)
        turn, kept = record.turn, []
        for index, found in enumerate(turn.objects):
            if found.bbox_2d[0] < found.bbox_2d[2] and found.bbox_2d[1] < found.bbox_2d[3]:
                kept.append(index)
                continue
            what = f"the box {show(found.bbox_2d)} has no area"
            fix = "draw it again or remove it; data convert leaves it out"
            self.broken.add([Problem(what, record.places[index], fix)])
        student = replace(turn, objects=tuple(turn.objects[index] for index in kept), root=root)
        stats.places.append(record.where)
        sample = Sample(student, where=record.where)
        return _Numbered(len(stats.places), sample, [record.places[index] for index in kept])

    def _note(self, finding: Finding) -> None:
        if finding.kind in COUNTED:
            self.notes.setdefault(finding.kind, Findings(ANNOTATIONS)).add([Problem("", finding.where)])
            return
        what = ": ".join(part for part in (FINDING_TITLES[finding.kind], finding.what) if part)
        self.odd.add([Problem(what, finding.where, "correct it; data convert reports it and goes on")])

    def report(self, findings: dict[str, Findings]) -> None:
        """Add what was noted to what the rules found."""
        used = {label for stats in self.splits.values() for label in stats.labels}
        if unused := [Problem("", repr(label)) for label in self.declared if label not in used]:
            self.notes.setdefault("unused", Findings(ANNOTATIONS)).add(unused)
        for kind, found in self.notes.items():
            places = ", ".join(problem.where for problem in found.shown[""][:MAX_NOTES])
            self.odd.add([Problem(f"{found.num_failed} {FINDING_TITLES[kind]}", places)], "note")
        findings[PARSE].merge(self.broken)
        findings.setdefault(ANNOTATIONS, Findings(ANNOTATIONS)).merge(self.odd)
