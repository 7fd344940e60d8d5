"""Records as sample files, one a split, in the flat form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwendet.data.formats.writer import SplitFiles, Writer, as_coco, number
from qwendet.data.samples import DetectedObject, Turn
from qwendet.data.segmentation import Rle


class JsonlWriter(Writer):
    """Writes ``<split>.jsonl``; images are placed in ``images/``, or lines name them where they are."""

    def __init__(self, folder: Path, *, has_images: bool = True) -> None:
        super().__init__(folder, has_images=has_images)
        self._lines = SplitFiles(folder, "{}.jsonl", self.files)

    def add(self, split: str, turn: Turn, image: str) -> None:
        """Write a line."""
        self._lines.write(split, sample_line(turn, self.place(split, image) if self.has_images else image))

    def finish(self) -> list[str]:
        """Close the files."""
        return [f"{split}.jsonl" for split in self._lines.close()]


def sample_line(turn: Turn, image: str) -> str:
    """One line of a sample file, with its line break; what is not set is left out."""
    width, height = turn.declared_size or (None, None)
    record = {
        "images": [image],
        "objects": [_object_record(found) for found in turn.objects],
        "labels": turn.labels,
        "neg_labels": turn.neg_labels,
        "not_exhaustive_labels": turn.not_exhaustive_labels or None,
        "width": width,
        "height": height,
    }
    given = {key: value for key, value in record.items() if value is not None}
    return json.dumps(given, ensure_ascii=False) + "\n"


def _object_record(found: DetectedObject) -> dict[str, Any]:
    drawn = found.segmentation
    record = {
        "bbox_2d": [number(value) for value in found.bbox_2d],
        "desc": found.desc,
        "crowd": found.crowd or None,
        "difficult": found.difficult or None,
        "area": None if found.area is None else number(found.area),
        "rle" if isinstance(drawn, Rle) else "polygon": None if drawn is None else as_coco(drawn),
        "frequency": found.frequency,
    }
    return {key: value for key, value in record.items() if value is not None}
