"""What the checks of a whole data set look at, and those of its samples, labels and settings together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from qwendet.checks.config.lookalikes import lookalikes, nearest_lookalike
from qwendet.checks.config.samples import Split
from qwendet.checks.config.stats import BOX_COLUMNS, SeenImage, SplitStats
from qwendet.checks.runner import NotApplicableError, Verdict
from qwendet.config.schema import Config
from qwendet.data.archives import copies, file_at
from qwendet.data.augment import steps_of
from qwendet.data.directions import direction_problems
from qwendet.errors import Problem

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""Of objects by COCO: their least and their largest area, square pixels."""


@dataclass(frozen=True)
class Dataset:
    """The config, and what its sample files hold."""

    config: Config
    splits: Mapping[Split, SplitStats]

    def content_of(self, seen: SeenImage) -> object:
        """Something alike for images of the same bytes, whatever path or link leads there."""
        return self._contents.get(seen.file_id, seen.file_id)

    @cached_property
    def _contents(self) -> dict[object, object]:
        opened = {
            seen.file_id: seen for stats in self.splits.values() for seen in stats.images if seen.num_bytes
        }
        counts = Counter(seen.num_bytes for seen in opened.values())
        found = {id: file_at(Path(seen.path)) for id, seen in opened.items() if counts[seen.num_bytes] > 1}
        files = {id: file for id, file in found.items() if file is not None}
        keys = copies(dict.fromkeys(files.values()))
        return {id: keys[file] for id, file in files.items()}


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        good: what is so when there are none.
        needs: files without whose samples it is skipped.
        is_of_data: it looks at sample files alone, so that it can run without a config.
    """

    find: Callable[[Dataset], Iterable[Problem]]
    good: str
    needs: tuple[Split, ...] = ()
    is_of_data: bool = True

    def __call__(self, dataset: Dataset) -> Verdict:
        """Run it, unless a file is not there or holds no sample that can be read."""
        for split in self.needs:
            stats = dataset.splits.get(split)
            if stats is None:
                raise NotApplicableError(f"data.{split} not set")
            if not stats.num_parsed:
                raise NotApplicableError(f"{stats.name}: no sample that can be read")
        return Verdict(self.good, tuple(self.find(dataset)))


def files_hold_samples(dataset: Dataset) -> Iterable[Problem]:
    """No sample file is empty, or empty once broken samples are left out."""
    leaves_out = dataset.config.data.on_bad_sample == "skip"
    for stats in dataset.splits.values():
        if stats.num_samples == 0:
            fix = "write one sample a line into it, or give another file"
            yield Problem("the file holds no samples", str(stats.path), fix)
        elif leaves_out and stats.num_usable == 0:
            yield Problem("no sample of the file is usable", str(stats.path), "fix its samples")


def images_are_under_the_root(dataset: Dataset) -> Iterable[Problem]:
    """Some image is there: if none is, the folder is wrong and not every path."""
    for stats in dataset.splits.values():
        lost = stats.num_absent + stats.num_forbidden
        if lost == 0 or any(seen.num_bytes for seen in stats.images):
            continue
        example = f"; the first: {stats.first_absent.what}" if stats.first_absent else ""
        if stats.num_forbidden == lost:
            fix = "give yourself the right to read them: chmod -R +rX FOLDER"
            yield Problem(f"none of the {lost} images may be read{example}", str(stats.path), fix)
        else:
            fix = "set data.root, or --image-dir, to the folder that the image paths start from"
            yield Problem(f"none of the {lost} images is there{example}", str(stats.path), fix)


def no_line_is_repeated(dataset: Dataset) -> Iterable[Problem]:
    """No sample is in its file twice, and no file under two names."""
    for stats in dataset.splits.values():
        kept: dict[object, Path] = {}
        files = () if stats.source is None else stats.source.files
        for file, key in (copies(files) if len(files) > 1 else {}).items():
            if (other := kept.setdefault(key, Path(str(file)))) != file:
                yield Problem(f"the file is a copy of {other}", str(file), "remove one of them")
        for line, first in stats.repeated:
            what = f"the sample repeats that of {stats.where(first)}"
            yield Problem(
                what, stats.where(line), "remove one, or accept it where samples are repeated on purpose"
            )


def labels_read_differently(dataset: Dataset) -> Iterable[Problem]:
    """No two labels differ only in case, blanks, dots, unicode form or letters that look alike."""
    uses = {
        label: use.where
        for stats in dataset.splits.values()
        for label, use in stats.labels.items()
        if label not in stats.asked
    }
    listed = dataset.config.data.labels or ()
    for first, *others in lookalikes([*listed, *(label for label in uses if label not in listed)]):
        for other in others:
            what = f"the labels {first!r} and {other!r} read the same ({_escaped(first)}, {_escaped(other)})"
            fix = f"write {first!r} in both places: they would be learned as two things"
            yield Problem(what, uses.get(other, "data.labels"), fix)
    for label in [*listed, *uses]:
        parts = label.split(", ")
        if len(parts) > 1 and any(part in uses or part in listed for part in parts):
            what = f"the label {label!r} reads like several in the request, which separates labels by commas"
            yield Problem(what, uses.get(label, "data.labels"), "write it without the comma")


def _escaped(label: str) -> str:
    return label.encode("unicode_escape").decode("ascii") if not label.isascii() else repr(label)


def val_labels_are_trained(dataset: Dataset) -> Iterable[Problem]:
    """Every label of the validation samples that say not what they ask is in training samples too."""
    train, val = dataset.splits["train"], dataset.splits["val"]
    for label, use in val.labels.items():
        if label not in train.labels and label not in val.asked:
            near = nearest_lookalike(label, train.labels)
            fix = "add training samples with it, or remove it from validation"
            yield Problem(
                f"the label {label!r} is in validation only: it would never be learned",
                use.where,
                fix if near is None else f"write {near!r}, as in training",
            )


def there_are_labels(dataset: Dataset) -> Iterable[Problem]:
    """There is something to look for; with the head on, ``config.detection.on_without_boxes`` says it."""
    config = dataset.config
    if config.data.labels is None and not dataset.splits["train"].labels and not config.detection.enabled:
        what = "no training sample has an object, and data.labels is not set: there is no label to look for"
        yield Problem(what, "data.labels", "name the labels there, or give training samples with boxes")


def head_is_wanted(dataset: Dataset) -> Iterable[Problem]:
    """With boxes in the data, the detection head is on."""
    stats = dataset.splits["train"]
    if not dataset.config.detection.enabled and stats.num_boxes > 0:
        what = f"detection.enabled is false, but {stats.name} has {stats.num_boxes} boxes: no head learns"
        fix = "set it to true; for text answers only, add config.detection.off_with_boxes to data.allow"
        yield Problem(what, "detection.enabled", fix)


def head_has_boxes(dataset: Dataset) -> Iterable[Problem]:
    """With the detection head on, there are boxes to learn."""
    stats = dataset.splits["train"]
    if dataset.config.detection.enabled and stats.num_boxes == 0:
        what = f"detection.enabled is true, but {stats.name} has no box: the head would find nothing"
        yield Problem(what, "detection.enabled", "give training samples with boxes, or set it to false")


def val_has_boxes(dataset: Dataset) -> Iterable[Problem]:
    """Where training has boxes, validation has some: without any, nothing is measured."""
    train, val = dataset.splits["train"], dataset.splits["val"]
    if train.num_boxes and not val.num_boxes:
        what = f"{val.name} has no box, {train.name} has {train.num_boxes}: nothing is measured"
        yield Problem(what, "data.val", "give validation samples with boxes")


def best_metric_is_measured(dataset: Dataset) -> Iterable[Problem]:
    """There are validation objects of the size that ``train.best_metric`` is of."""
    metric, val = dataset.config.best_metric(), dataset.splits["val"]
    source, _, name = metric.partition("/")
    size = name.partition("_")[2]
    if dataset.config.train.eval_steps is None or size not in SIZES:
        return
    x1, y1, x2, y2, *_ = np.frombuffer(val.boxes, np.float32).reshape(-1, BOX_COLUMNS).T
    areas, (least, most) = (x2 - x1) * (y2 - y1), SIZES[size]
    if not ((least <= areas) & (areas <= most)).any():
        what = f"train.best_metric is {metric}, but {val.name} has no {size} box: it would never be logged"
        fix = f"set it to {source}/AP, or give validation samples with such boxes"
        yield Problem(what, "train.best_metric", fix)


def directions_stay_true(dataset: Dataset) -> Iterable[Problem]:
    """No label names a direction that ``data.augment`` changes."""
    data, train = dataset.config.data, dataset.splits["train"]
    labels = dict.fromkeys([*(data.labels or sorted(train.labels)), *train.asked])
    return direction_problems(data, steps_of(data), [*labels])


def pool_is_large_enough(dataset: Dataset) -> Iterable[Problem]:
    """As many different demonstrations are there as a sample is to be given."""
    data = dataset.config.data
    if data.teacher_ratio == 0 or data.num_teachers == 0:
        return
    name: Split = "train" if data.teachers is None else "teachers"
    stats = dataset.splits.get(name)
    if stats is None or not stats.num_parsed:
        return
    available = stats.num_parsed - (name == "train")
    if available < data.num_teachers:
        what = (
            f"data.num_teachers is {data.num_teachers}, but {stats.name} has only {available} samples"
            " that can be shown"
        )
        yield Problem(what, "data.num_teachers", "lower it, or enlarge the pool")


def pool_is_used(dataset: Dataset) -> Iterable[Problem]:
    """A pool of demonstrations is drawn from."""
    data = dataset.config.data
    train = dataset.splits.get("train")
    if data.teachers is None or data.teacher_ratio > 0 or (train is not None and train.num_with_teachers):
        return
    what = "data.teachers is set, but data.teacher_ratio is 0: no training sample is given a demonstration"
    yield Problem(what, "data.teacher_ratio", "set it above 0, such as 0.5, or remove data.teachers")


CHECKS: Mapping[str, Check] = {
    "config.data.empty": Check(files_hold_samples, "every file holds samples"),
    "config.images.root": Check(images_are_under_the_root, "image paths lead somewhere"),
    "config.labels.none": Check(
        there_are_labels, "there are labels to look for", needs=("train",), is_of_data=False
    ),
    "config.labels.lookalike": Check(labels_read_differently, "no two labels read the same"),
    "config.labels.only_in_validation": Check(
        val_labels_are_trained, "every validation label is trained", needs=("train", "val")
    ),
    "config.train.best_metric": Check(
        best_metric_is_measured, "the best metric has something to measure", needs=("val",), is_of_data=False
    ),
    "config.augment.directions": Check(
        directions_stay_true, "labels stay true in augmented images", needs=("train",), is_of_data=False
    ),
    "config.data.repeated": Check(no_line_is_repeated, "no sample is there twice"),
    "config.data.val_without_boxes": Check(
        val_has_boxes, "validation has boxes where training has some", needs=("train", "val")
    ),
    "config.detection.off_with_boxes": Check(
        head_is_wanted, "no boxes go unused", needs=("train",), is_of_data=False
    ),
    "config.detection.on_without_boxes": Check(
        head_has_boxes, "the head has boxes to learn", needs=("train",), is_of_data=False
    ),
    "config.teachers.pool": Check(pool_is_large_enough, "there are enough demonstrations", is_of_data=False),
    "config.teachers.unused": Check(pool_is_used, "no pool of demonstrations lies idle", is_of_data=False),
}
