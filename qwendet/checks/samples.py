"""Rules that every sample is held against, in one pass over each sample file.

    data.val, data.train, data.teachers ─► line ─► Sample ─► its turns ─► every rule ─► Findings
                                                                      └► labels, counts, images ─► Scan

The validation file is read first: the others are compared with its images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from qwendet.checks.runner import Findings
from qwendet.config import Config
from qwendet.data.images import image_size, is_turned
from qwendet.data.resize import require_inside
from qwendet.data.samples import Sample, SampleFile, Turn
from qwendet.errors import Problem
from qwendet.progress import Tracker

Split = Literal["val", "train", "teachers"]

SPLITS: tuple[Split, ...] = ("val", "train", "teachers")
PARSE = "config.data.samples"
LEFT_OUT = "left out (data.on_bad_sample: skip)"


@dataclass
class Visit:
    """One turn of a sample, as the rules see it.

    Attributes:
        config: the config.
        split: the file that the sample is in.
        turn: the turn.
        sample: the sample that it belongs to.
        val_images: files of the validation images.
        size: displayed width and height; None until the image was opened, or if it cannot be.
    """

    config: Config
    split: Split
    turn: Turn
    sample: Sample
    val_images: AbstractSet[str]
    size: tuple[int, int] | None = None

    @property
    def where(self) -> str:
        """File and line."""
        return self.sample.where

    @property
    def is_demonstration(self) -> bool:
        """Whether the turn stands in front of the one that is learned or answered."""
        return self.turn is not self.sample.student


Rule = Callable[[Visit], Iterable[Problem]]


def image_opens(visit: Visit) -> list[Problem]:
    """The image is in the data root, whole, and of a usable size; only its header is read."""
    visit.size = image_size(visit.turn.image, visit.turn.root, visit.where)
    return []


def size_is_declared(visit: Visit) -> list[Problem]:
    """``width`` and ``height``, where given, are those of the image as displayed."""
    turn, size = visit.turn, visit.size
    if size is None:
        return []
    declared = (turn.width or size[0], turn.height or size[1])
    if declared == size:
        return []
    what = f"{turn.image!r} is declared {declared[0]}×{declared[1]} but is displayed {size[0]}×{size[1]}"
    fix = "correct width and height, and see that the boxes fit the image"
    if declared == size[::-1] and is_turned(turn.image, turn.root, visit.where):
        fix = "give size and boxes after the EXIF orientation is applied, as viewers show the image"
    return [Problem(what, visit.where, fix)]


def boxes_are_inside(visit: Visit) -> list[Problem]:
    """No box leaves its image."""
    if visit.size is not None:
        require_inside(visit.turn, visit.size, visit.where)
    return []


def no_box_is_repeated(visit: Visit) -> list[Problem]:
    """No label has the same box twice in an image."""
    seen: dict[tuple[object, str], int] = {}
    problems = []
    for index, item in enumerate(visit.turn.objects):
        first = seen.setdefault((item.bbox_2d, item.desc), index)
        if first != index:
            what = f"objects[{index}] repeats objects[{first}]: {item.desc!r} {list(item.bbox_2d)}"
            problems.append(Problem(what, visit.where, "remove one: the head would have to find it twice"))
    return problems


def labels_are_listed(visit: Visit) -> list[Problem]:
    """Every label is in ``data.labels``, where that is given."""
    listed = visit.config.data.labels
    if listed is None:
        return []
    strange = sorted({item.desc for item in visit.turn.objects} - set(listed))
    return [
        Problem(f"the label {label!r} is not in data.labels", visit.where, "add it there or correct it")
        for label in strange
    ]


def train_is_not_val(visit: Visit) -> list[Problem]:
    """No training image is a validation image."""
    is_trained = visit.split == "train" and not visit.is_demonstration
    if not is_trained or image_file(visit.turn) not in visit.val_images:
        return []
    what = f"the training image {visit.turn.image!r} is also in validation, which would measure memory"
    return [Problem(what, visit.where, "remove the sample from data.train or data.val")]


def demonstrations_do_not_leak(visit: Visit) -> list[Problem]:
    """No demonstration shows a validation image, or the very image that is asked about."""
    turn, fix = visit.turn, "remove the demonstration, or take another image"
    if visit.is_demonstration and image_file(turn) == image_file(visit.sample.student):
        what = (
            f"a demonstration shows {turn.image!r}, the very image that is asked about: it gives the answer"
        )
        return [Problem(what, visit.where, fix)]
    may_leak = visit.split == "teachers" or (visit.split == "train" and visit.is_demonstration)
    if may_leak and image_file(turn) in visit.val_images:
        what = f"the demonstration image {turn.image!r} is also in validation: it gives the answer"
        return [Problem(what, visit.where, fix)]
    return []


RULES: Mapping[str, tuple[Rule, str]] = {
    "config.images.open": (image_opens, "every image opens"),  # first: it gives the others the size
    "config.images.size": (size_is_declared, "declared sizes are those of the images"),
    "config.boxes.inside": (boxes_are_inside, "every box lies inside its image"),
    "config.boxes.duplicate": (no_box_is_repeated, "no box is repeated"),
    "config.labels.unknown": (labels_are_listed, "every label is in the label set"),
    "config.data.train_val_overlap": (train_is_not_val, "no training image is in validation"),
    "config.teachers.leak": (demonstrations_do_not_leak, "no demonstration gives a validation answer away"),
}
LEAVES_OUT = frozenset({PARSE, "config.images.open", "config.boxes.inside", "config.labels.unknown"})
"""Rules whose problems ``data.on_bad_sample: skip`` leaves out with their sample."""


@dataclass
class Scan:
    """What one pass over a sample file saw.

    Attributes:
        path: the file.
        num_samples: samples in it, broken ones included.
        num_usable: samples that parse and that no rule of ``LEAVES_OUT`` speaks against.
        num_boxes: boxes to be trained on, of student turns.
        labels: each label, and where it was first seen.
        images: files of the student images, for validation only.
    """

    path: Path
    num_samples: int = 0
    num_usable: int = 0
    num_boxes: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)


def image_file(turn: Turn) -> str:
    """The file of a turn's image, whatever path leads to it."""
    return os.path.realpath(turn.root / turn.image)


def scan_files(config: Config, tracker: Tracker) -> tuple[dict[Split, Scan], dict[str, Findings]]:
    """Hold every sample of every file that the config names against every rule.

    Returns:
        What was seen, by split; and what each rule found, by id.

    Raises:
        DataError: if a file cannot be read.
    """
    findings = {id: Findings(id) for id in (PARSE, *RULES)}
    scans: dict[Split, Scan] = {}
    for split in SPLITS:
        name = getattr(config.data, split)
        if name is not None:
            val_images = scans["val"].images if "val" in scans else frozenset()
            scans[split] = _FilePass(config, split, Path(name), val_images, findings).run(tracker)
    return scans, findings


class _FilePass:
    """One pass over one file.

    Args:
        config: the config.
        split: which of its files.
        path: that file.
        val_images: files of the validation images, as far as they are known.
        findings: what the rules find is added here.
    """

    def __init__(
        self,
        config: Config,
        split: Split,
        path: Path,
        val_images: AbstractSet[str],
        findings: Mapping[str, Findings],
    ) -> None:
        self.config = config
        self.split: Split = split
        self.scan = Scan(path)
        self.val_images = val_images
        self.findings = findings
        # Training leaves broken samples out; a demonstration that is drawn from a pool is needed.
        self.is_lenient = config.data.on_bad_sample == "skip" and split != "teachers"

    def run(self, tracker: Tracker) -> Scan:
        """Read the file."""
        if _is_blank(self.scan.path):
            return self.scan
        root = self.config.data.root
        file = SampleFile(self.scan.path, None if root is None else Path(root))
        self.scan.num_samples = len(file)
        with tracker(f"checking {self.scan.path.name}", len(file)) as advance:
            for index in range(len(file)):
                self._read(file, index)
                advance(index + 1, "")
        return self.scan

    def _read(self, file: SampleFile, index: int) -> None:
        samples: list[Sample] = []

        def parse() -> list[Problem]:
            samples.append(file[index])
            return []

        self._holds(PARSE, parse)
        if samples:
            self._visit(samples[0])

    def _visit(self, sample: Sample) -> None:
        teachers = () if self.split == "teachers" else sample.teachers  # of a pool, only the student is shown
        turns = (*teachers, sample.student)
        visits = [Visit(self.config, self.split, turn, sample, self.val_images) for turn in turns]
        verdicts = [self._is_usable(visit) for visit in visits]
        is_usable = all(verdicts)
        self.scan.num_usable += is_usable
        if is_usable or not self.is_lenient:
            self._count(sample)

    def _is_usable(self, visit: Visit) -> bool:
        """Hold a turn against every rule; whether those of ``LEAVES_OUT`` let it pass."""
        held = {id: self._holds(id, partial(rule, visit)) for id, (rule, _) in RULES.items()}
        return all(held[id] for id in LEAVES_OUT & held.keys())

    def _holds(self, id: str, find: Callable[[], Iterable[Problem]]) -> bool:
        return self.findings[id].collect(find, LEFT_OUT if self.is_lenient and id in LEAVES_OUT else "")

    def _count(self, sample: Sample) -> None:
        if self.split == "val":
            self.scan.images.add(image_file(sample.student))
        self.scan.num_boxes += sum(not item.crowd for item in sample.student.objects)
        for turn in (*sample.teachers, sample.student):
            for item in turn.objects:
                self.scan.labels.setdefault(item.desc, sample.where)


def _is_blank(path: Path) -> bool:
    """Whether a file holds nothing but white space."""
    with path.open("rb") as file:
        return not any(line.strip() for line in file)
