"""One pass over an annotated data set (COCO, VOC, YOLO): its records meet the rules that samples do.

    data set ─► Record, boxes and sizes as written ─► every rule of ``samples`` ─► Scan a split, Findings
             └► Finding, Problem of its reader ─► config.data.annotations, config.data.samples

Nothing is mended, and nothing is written.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwendet.checks.config.census import Scan
from qwendet.checks.config.sample_files import ORDER, PARTS, Given
from qwendet.checks.config.samples import Split
from qwendet.checks.config.scan import PARSE, PASS_IDS, Depth, Pass, Task, scan_files
from qwendet.checks.runner import Findings
from qwendet.config import Config
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
from qwendet.data.image_tokens import ImageLimits
from qwendet.errors import DataError, Problem
from qwendet.progress import Tracker

ANNOTATIONS = "config.data.annotations"
TOLD = HARMLESS | {"unlabelled"}
"""What the formats themselves allow: told once, and no failure."""
MAX_NOTES = 5
"""Places that are named of each kind."""


def scan_data(
    config: Config,
    given: Given,
    tracker: Tracker,
    *,
    depth: Depth = "header",
    workers: int = 1,
    limits: ImageLimits | None = None,
) -> tuple[dict[Split, Scan], dict[str, Findings]]:
    """Hold sample files and annotated data sets against every rule; as :func:`scan_files`.

    Raises:
        DataError: if a data set cannot be read at all, or a split is there twice.
    """
    scans, findings = scan_files(config, given.files, tracker, depth=depth, workers=workers, limits=limits)
    for path, kind in given.datasets.items():
        reading = _DatasetPass(config, path, kind, depth, limits)
        reading.read(tracker)
        for id, found in reading.findings().items():
            findings.setdefault(id, Findings(id)).merge(found)
        for split, part in reading.passes.items():
            if split in scans:
                what = f"{scans[split].path} and {path} both hold {split} samples"
                raise DataError(what, str(path), "give one of them")
            scans[split] = part.scan
    return {split: scans[split] for split in ORDER if split in scans}, findings


@dataclass
class _DatasetPass:
    """The pass over one data set."""

    config: Config
    path: Path
    format: Format
    depth: Depth
    limits: ImageLimits | None
    passes: dict[Split, Pass] = field(default_factory=dict)
    declared: dict[str, None] = field(default_factory=dict)
    counts: Counter[FindingKind] = field(default_factory=Counter)
    told: dict[FindingKind, list[str]] = field(default_factory=lambda: defaultdict(list))
    broken: Findings = field(default_factory=lambda: Findings(PARSE))
    odd: Findings = field(default_factory=lambda: Findings(ANNOTATIONS))

    def read(self, tracker: Tracker) -> None:
        """Go through all that the data set holds."""
        root = self.config.data.root
        source = open_written(self.path, image_dir=None if root is None else Path(root))
        count = 0
        with tracker(f"checking {self.path.name}", source.total) as advance:
            for item in source.items:
                self._take(item, source.root)
                count += isinstance(item, Record)
                advance(count, "")
        if not self.passes and not self.broken.num_failed:
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
        """Hold a record against every rule, but for boxes that no sample could have."""
        part = self._pass(record.split, root)
        for finding in record.findings:
            self._tell(finding)
        turn = record.sample.student
        empty = {index for index, found in enumerate(turn.objects) if not _has_area(found.bbox_2d)}
        for index in empty:
            what = f"the box {show(turn.objects[index].bbox_2d)} has no area"
            fix = "draw it again or remove it; data convert leaves it out"
            self.broken.add([Problem(what, record.places[index], fix)])
        kept = [index for index in range(len(turn.objects)) if index not in empty]
        objects = tuple(turn.objects[index] for index in kept)
        student = replace(turn, objects=objects, root=root)
        part.scan.places.append(record.sample.where)
        part.scan.num_samples += 1
        part.scan.num_parsed += 1
        number = part.scan.num_samples
        part.visit(replace(record.sample, student=student), number, [record.places[at] for at in kept])
        digest = hashlib.blake2b(repr((turn.image, objects)).encode(), digest_size=8).digest()
        part.scan.add_line(digest, number)

    def _pass(self, split: str, root: Path) -> Pass:
        name = PARTS[split]
        if name not in self.passes:
            self.passes[name] = Pass(Task(self.config, name, self.path, root, self.depth, self.limits))
            self.passes[name].scan.split = "" if split == WHOLE else split
            self.passes[name].scan.format = self.format
        return self.passes[name]

    def findings(self) -> Mapping[str, Findings]:
        """What was found, by id."""
        found = {id: Findings(id) for id in PASS_IDS}
        for part in self.passes.values():
            for id, few in part.findings.items():
                found[id].merge(few)
        found[PARSE].merge(self.broken)
        used = {label for part in self.passes.values() for label in part.scan.labels}
        for label in self.declared:
            if label not in used:
                self._count("unused", repr(label))
        for kind, count in self.counts.items():
            self.odd.add([Problem(f"{count} {FINDING_TITLES[kind]}", ", ".join(self.told[kind]))], "told")
        return {**found, ANNOTATIONS: self.odd}


def _has_area(box: tuple[float, float, float, float]) -> bool:
    return box[0] < box[2] and box[1] < box[3]
