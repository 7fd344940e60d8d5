"""Records as sample files, one a split, in the flat form."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qwendet.data.formats.writer import SplitFiles, Writer, as_coco, number
from qwendet.data.samples import DetectedObject, Turn
from qwendet.data.segmentation import Rle


class JsonlWriter(Writer):
    """Writes ``<split>.jsonl``; images are placed in ``images/``, or lines name them where they are."""

    def __init__(self, folder: Path, stack: ExitStack, *, has_images: bool = True) -> None:
        super().__init__(folder, stack, has_images=has_images)
        self._lines = SplitFiles(folder, "{}.jsonl", stack)

    def add(self, split: str, turn: Turn, image: str) -> None:
        """Write a line."""
        self._lines.write(split, sample_line(turn, self.place(split, image) if self.has_images else image))

    def finish(self) -> list[str]:
        """Close the files."""
        return [f"{split}.jsonl" for split in self._lines.close()]


def sample_line(turn: Turn, image: str) -> str:
    """One line of a sample file, with its line break; what is not set is left out."""
    record: dict[str, Any] = {
        "images": [image],
        "objects": [_object_record(found) for found in turn.objects],
    }
    if turn.labels is not None:
        record["labels"] = turn.labels
    if turn.neg_labels is not None:
        record["neg_labels"] = turn.neg_labels
    if turn.not_exhaustive_labels:
        record["not_exhaustive_labels"] = turn.not_exhaustive_labels
    if turn.declared_size:
        record |= {"width": turn.width, "height": turn.height}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _object_record(found: DetectedObject) -> dict[str, Any]:
    record: dict[str, Any] = {"bbox_2d": [number(value) for value in found.bbox_2d], "desc": found.desc}
    if found.crowd:
        record["crowd"] = True
    if found.difficult:
        record["difficult"] = True
    if found.area is not None:
        record["area"] = number(found.area)
    if found.segmentation is not None:
        key = "rle" if isinstance(found.segmentation, Rle) else "polygon"
        record[key] = as_coco(found.segmentation)
    if found.frequency is not None:
        record["frequency"] = found.frequency
    return record
