"""What a reader of any format yields: annotated images, labels, and what it repaired or could not use.

COCO │ VOC │ YOLO │ JSONL ─► Source(root, total, items) ─► held against images (fitting) ─► a writer
                                              │         └► as written: the rules of `data check`
                                              └► Labels │ Record │ Finding │ Problem, one after another
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from qwendet.data.samples import Turn
from qwendet.errors import DataError, Problem

T = TypeVar("T")
Format = Literal[
    "jsonl", "voc", "coco", "yolo", "conversations",
    "cvat", "labelstudio", "labelme", "via", "createml", "datumaro", "supervisely", "openimages",
    "huggingface", "refcoco", "parquet", "webdataset",
]  # fmt: skip
SAMPLES: tuple[Format, ...] = ("jsonl", "parquet", "webdataset")
"""Formats that are trained on as they are."""
Target = Literal["jsonl", "parquet", "webdataset", "voc", "coco", "yolo", "yolo-seg", "swift", "llamafactory"]
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the image as displayed."""
FindingKind = Literal[
    "zero_area", "clipped", "cut", "derived", "unreadable", "misfit", "segmentations_lost",
    "repeated", "same_label", "unused", "renamed",
    "placed_as", "resized", "absent", "unlabelled", "unlisted", "other_task", "no_split", "no_annotation",
    "same_image", "demonstrations", "listed_again", "no_boxes", "flags_lost", "frame", "asked_of_some",
    "no_extent", "not_there", "label_sets",
    "empty_windows", "cut_everywhere",
    "labels_lost",
]  # fmt: skip

FINDING_TITLES: Mapping[FindingKind, str] = {
    "zero_area": "boxes without area left out",
    "clipped": "boxes cut at the image's edge, which they left by a pixel at most",
    "cut": "boxes cut at the image's edge, which they left by more than a pixel",
    "derived": "boxes derived from polygons or masks",
    "unreadable": "polygons or masks that are none, left out: their boxes are kept",
    "misfit": "polygons or masks are more than a pixel off their boxes, which stay",
    "segmentations_lost": "images have polygons or masks that this format cannot hold: boxes are written",
    "repeated": "boxes repeat another of the same image and label",
    "same_label": "labels are declared more than once and were merged",
    "unused": "declared labels have no box",
    "renamed": "annotations name another image file than the one used",
    "placed_as": "images share a name with another and were given one of their own",
    "resized": "annotations claim another size than the image's real one, which was used",
    "absent": "images are not there: their sizes are those the annotations claim",
    "unlabelled": "images have no label file and count as negatives",
    "unlisted": "annotations in no split left out",
    "no_annotation": "images without annotation left out",
    "other_task": "annotation files of other tasks left aside",
    "no_split": "splits are named but hold no image",
    "same_image": "images are there more than once in their split, each time with boxes of its own",
    "listed_again": "lines of split lists name an image again and were left out",
    "no_boxes": "files hold answers without boxes (captions, questions), which were left out",
    "flags_lost": "images have crowds, which answers leave out, or difficult objects, which they do not mark",
    "labels_lost": "images say what is asked or was looked for, which is lost: other labels count as absent",
    "frame": "files whose boxes are read in this frame",
    "asked_of_some": "images are asked about some of the labels alone: others may be there",
    "no_extent": "shapes that are no boxes (tags, points, lines, what is outside) left out",
    "not_there": "files whose images are not all there; those of as many were left out",
    "label_sets": "files with labels of several sets, which became one",
    "empty_windows": "splits have windows without boxes, of which these were kept",
    "cut_everywhere": "boxes are whole in no window: raise --overlap, or take larger windows",
    "demonstrations": "samples lost their demonstrations: only their own image was converted",
}
HARMLESS: frozenset[FindingKind] = frozenset(
    {"derived", "misfit", "segmentations_lost", "unused", "placed_as", "other_task", "no_boxes", "frame"}
)
"""Kinds of findings that leave every box, label and image as they were."""

SPLITS = ("train", "val", "test")
TEST_PARTS = ("testA", "testB")
"""RefCOCO has two test splits: people, and all else."""
WHOLE = "all"
SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a reader repaired, left out or wants known.

    Attributes:
        kind: what sort of thing it is; see ``FINDING_TITLES``.
        where: the annotation file, and the object where it is about one.
        what: what was found, in words; empty where kind and place say it.
    """

    kind: FindingKind
    where: str
    what: str = ""

    @property
    def note(self) -> str:
        """Place and words."""
        return f"{self.where}: {self.what}" if self.what else self.where


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels that a data set declares, in its own order; those of no box among them."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated image, whatever format it came from.

    Attributes:
        split: ``train``, ``val``, ``test``, or ``all`` where the data set has no splits.
        turn: its image is relative to the source's root. As a reader yields it, boxes and size are as
            written, corners in order; once held against the image, width and height are those displayed.
        where: the annotation.
        name: the image's path below the folder that holds the images of its split: what it is placed as.
        places: where each object is written.
        size: where width and height come from: what the format calls them, or ``MEASURED``.
    """

    split: str
    turn: Turn
    where: str
    name: str
    places: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    size: str = "the size"


MEASURED = "the image"
"""Width and height of a record are the image's own, which its reader needed."""


Item = Labels | Record | Finding | Problem
"""A problem stands for an image, or an annotation of none, that cannot be used."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set opened for reading.

    Attributes:
        root: folder that image paths start from and must stay in.
        total: number of images, for progress; 0 if that takes reading them.
        items: what it holds; can be gone through once.
    """

    root: Path
    total: int
    items: Iterator[Item]


def or_problems(items: Iterator[T]) -> Iterator[T | Problem]:
    """What a reader yields of one image, or what is wrong with it."""
    try:
        yield from items
    except DataError as error:
        yield from error.problems


def split_of(name: str) -> str | None:
    """The split that a file's or folder's name speaks of, if it speaks of exactly one.

    Example:
        >>> split_of("instances_train2017"), split_of("valid"), split_of("trainval")
        ('train', 'val', None)
    """
    words = set(re.findall("[a-z]+", name.lower()))
    found = [split for split, own in SPLIT_WORDS.items() if not words.isdisjoint(own)]
    return found[0] if len(found) == 1 else None
