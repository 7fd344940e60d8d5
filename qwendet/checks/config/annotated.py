"""One pass over an annotated data set (COCO, VOC, YOLO): its records meet the rules that samples do.

    data set ─► Record, boxes and sizes as written ─► batches ─► worker: every rule of ``samples``
             │                                                     └► Scan a split, Findings
             └► Finding, Problem of its reader ─► config.data.annotations, config.data.samples

Nothing is mended, and nothing is written.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from qwendet.checks.config.census import Scan
from qwendet.checks.config.crew import FEW_SAMPLES, Crew
from qwendet.checks.config.sample_files import ORDER, PARTS, Given
from qwendet.checks.config.samples import Split
from qwendet.checks.config.scan import (
    PARSE,
    PASS_IDS,
    PIECE_SAMPLES,
    Depth,
    Judged,
    Pass,
    Task,
    scan_files,
    take_in,
)
from qwendet.checks.runner import Findings
from qwendet.config.schema import Config
from qwendet.data.formats.detect import open_written
from qwendet.data.formats.fitting import show
from qwendet.data.formats.records import (
    FINDING_TITLES,
    HARMLESS,
    WHOLE,
    Finding,
    FindingKind,
    Format,
    Item,
    Labels,
    Record,
)
from qwendet.data.samples import Sample
from qwendet.errors import DataError, Problem
from qwendet.families.family import PixelLimits
from qwendet.progress import track

ANNOTATIONS = "config.data.annotations"
TOLD = HARMLESS | {"unlabelled"}
"""What the formats themselves allow: told once, and no failure."""
MAX_NOTES = 5
"""Places that are named of each kind."""


def scan_data(
    config: Config,
    given: Given,
    *,
    depth: Depth = "header",
    workers: int = 1,
    limits: PixelLimits | None = None,
) -> tuple[dict[Split, Scan], dict[str, Findings]]:
    """Hold sample files and annotated data sets against every rule; as :func:`scan_files`.

    Raises:
        DataError: if a data set cannot be read at all, or a split is there twice.
    """
    scans, findings = scan_files(config, given.files, depth=depth, workers=workers, limits=limits)
    for path, kind in given.datasets.items():
        with Crew(workers, alone=FEW_SAMPLES) as crew:
            reading = _DatasetPass(config, path, kind, depth, limits, crew)
            reading.read()
        for id, found in reading.findings().items():
            findings.setdefault(id, Findings(id)).merge(found)
        for split, scan in reading.scans.items():
            if split in scans:
                what = f"{scans[split].path} and {path} both hold {split} samples"
                raise DataError(what, str(path), "give one of them")
            scans[split] = scan
    return {split: scans[split] for split in ORDER if split in scans}, findings


class _Numbered(NamedTuple):
    """A sample, its number in its split, and where each of its objects is written."""

    number: int
    sample: Sample
    places: list[str]


def _judge(task: Task, batch: Sequence[_Numbered]) -> Judged:
    """Hold some samples of a split against every rule."""
    reading = Pass(task)
    for number, sample, places in batch:
        reading.scan.num_samples += 1
        reading.scan.num_parsed += 1
        reading.visit(sample, number, places)
        turn = sample.student
        digest = hashlib.blake2b(repr((turn.image, turn.objects)).encode(), digest_size=8).digest()
        reading.scan.add_line(digest, number)
    return reading.scan, {id: found for id, found in reading.findings.items() if found.seconds}


@dataclass
class _DatasetPass:
    """The pass over one data set."""

    config: Config
    path: Path
    format: Format
    depth: Depth
    limits: PixelLimits | None
    crew: Crew
    scans: dict[Split, Scan] = field(default_factory=dict)
    waiting: dict[Split, list[_Numbered]] = field(default_factory=lambda: defaultdict(list))
    found: dict[str, Findings] = field(default_factory=lambda: {id: Findings(id) for id in PASS_IDS})
    declared: dict[str, None] = field(default_factory=dict)
    counts: Counter[FindingKind] = field(default_factory=Counter)
    told: dict[FindingKind, list[str]] = field(default_factory=lambda: defaultdict(list))
    broken: Findings = field(default_factory=lambda: Findings(PARSE))
    odd: Findings = field(default_factory=lambda: Findings(ANNOTATIONS))

    def read(self) -> None:
        """Go through all that the data set holds."""
        root = self.config.data.root
        source = open_written(self.path, self.format, None if root is None else Path(root))
        count = 0
        with track(f"checking {self.path.name}", source.total) as advance:
            for item in source.items:
                self._take(item, source.root)
                count += isinstance(item, Record)
                advance(count, "")
            for split in self.waiting:
                self._hand_on(split, source.root)
            self.crew.finish()
        if not self.scans and not self.broken.num_failed:
            raise DataError(
                "the data set holds no image", str(self.path), "give the folder that holds its images"
            )

    def _take(self, item: Item, root: Path) -> None:
        if isinstance(item, Record):
            self._visit(item, root)
        elif isinstance(item, Labels):
            self.declared |= dict.fromkeys(item.names)
        elif isinstance(item, Finding):
            self._tell(item)
        else:
            self.broken.add([item])

    def _tell(self, finding: Finding) -> None:
        if finding.kind in TOLD:
            self._count(finding.kind, finding.where)
            return
        what = ": ".join(part for part in (FINDING_TITLES[finding.kind], finding.what) if part)
        self.odd.add([Problem(what, finding.where, "correct it; data convert tells it and goes on")])

    def _count(self, kind: FindingKind, where: str) -> None:
        self.counts[kind] += 1
        if len(self.told[kind]) < MAX_NOTES:
            self.told[kind].append(where)

    def _visit(self, record: Record, root: Path) -> None:
        """Have a record held against every rule, but for boxes that no sample could have."""
        split = PARTS[record.split]
        if split not in self.scans:
            name = "" if record.split == WHOLE else record.split
            self.scans[split] = Scan(self.path, name, self.format)
        scan = self.scans[split]
        for finding in record.findings:
            self._tell(finding)
        turn = record.sample.student
        empty = {index for index, found in enumerate(turn.objects) if not _has_area(found.bbox_2d)}
        for index in empty:
            what = f"the box {show(turn.objects[index].bbox_2d)} has no area"
            fix = "draw it again or remove it; data convert leaves it out"
            self.broken.add([Problem(what, record.places[index], fix)])
        kept = [index for index in range(len(turn.objects)) if index not in empty]
        student = replace(turn, objects=tuple(turn.objects[index] for index in kept), root=root)
        scan.places.append(record.sample.where)
        places = [record.places[index] for index in kept]
        sample = replace(record.sample, student=student)
        self.waiting[split].append(_Numbered(len(scan.places), sample, places))
        if len(self.waiting[split]) == PIECE_SAMPLES:
            self._hand_on(split, root)

    def _hand_on(self, split: Split, root: Path) -> None:
        """Give what waits to the workers."""
        batch, self.waiting[split] = self.waiting[split], []
        task = Task(self.config, split, self.path, root, self.depth, self.limits)

        merge = partial(take_in, self.scans[split], self.found)
        self.crew.do(partial(_judge, task, batch), merge, len(batch))

    def findings(self) -> Mapping[str, Findings]:
        """What was found, by id."""
        self.found[PARSE].merge(self.broken)
        used = {label for scan in self.scans.values() for label in scan.labels}
        for label in self.declared:
            if label not in used:
                self._count("unused", repr(label))
        for kind, count in self.counts.items():
            self.odd.add([Problem(f"{count} {FINDING_TITLES[kind]}", ", ".join(self.told[kind]))], "told")
        return {**self.found, ANNOTATIONS: self.odd}


def _has_area(box: tuple[float, float, float, float]) -> bool:
    return box[0] < box[2] and box[1] < box[3]
