"""Records as YOLO: ``data.yaml``, ``images/<split>/``, ``labels/<split>/``, as Ultralytics reads them.

A line is a box, or with ``yolo-seg`` a polygon. Ultralytics takes all lines of a file for polygons if one is,
so there the box of an object without one is written as its four corners.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from qwendet.data.formats.fitting import ROUNDING
from qwendet.data.formats.records import SPLITS, WHOLE
from qwendet.data.formats.writer import SplitFiles, Writer
from qwendet.data.formats.yolo import FLAGS_FILE
from qwendet.data.formats.yolo_files import label_places
from qwendet.data.samples import DetectedObject, Turn
from qwendet.data.segmentation import Ring, Rle, extent, fits
from qwendet.errors import DataError

DECIMALS = 8
"""Places of a fraction: a thousandth of a pixel in an image of 100,000."""


class YoloWriter(Writer):
    """Writes a label file an image, empty for a negative."""

    def __init__(self, folder: Path, *, is_segmented: bool = False, has_images: bool = True) -> None:
        super().__init__(folder, has_images=has_images)
        self._is_segmented = is_segmented
        self._flags = SplitFiles(folder, FLAGS_FILE, self.files)
        self._written: dict[str, None] = {}
        self._splits: dict[str, None] = {}
        self._folders: set[Path] = set()

    def place(self, split: str, name: str) -> str:
        """Into ``images/<split>/``, beside ``labels/<split>/``."""
        return f"images/{split}/{name}"

    def add(self, split: str, turn: Turn, image: str) -> None:
        """Write a label file."""
        file = label_places(self.folder, self.place(split, image))[0]
        name = file.relative_to(self.folder).as_posix()
        if name in self._written:
            raise DataError(
                f"YOLO holds one label file an image, and {image!r} has another", "", "merge the two"
            )
        self._written[name] = None
        self._splits[split] = None
        if file.parent not in self._folders:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(file.parent)
        rings = [ring_of(found) if self._is_segmented else None for found in turn.objects]
        lines = (
            self._line(found, turn, (ring or corners_of(found)) if any(rings) else None)
            for found, ring in zip(turn.objects, rings, strict=True)
        )
        file.write_text("".join(lines), encoding="utf-8", newline="\n")
        self._write_flags(name, turn.objects)

    def _line(self, found: DetectedObject, turn: Turn, ring: Ring | None) -> str:
        if not turn.width or not turn.height:
            raise DataError("YOLO's fractions need the image's size", turn.image, "declare width and height")
        x1, y1, x2, y2 = found.bbox_2d
        pixels = ring or ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        values = (value / (turn.height if at % 2 else turn.width) for at, value in enumerate(pixels))
        numbers = " ".join(f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".") for value in values)
        return f"{self.number_of(found.desc)} {numbers}\n"

    def _write_flags(self, name: str, objects: Sequence[DetectedObject]) -> None:
        record: dict[str, Any] = {"labels": name}
        for flag in ("crowd", "difficult"):
            lines = [number for number, found in enumerate(objects, start=1) if getattr(found, flag)]
            record |= {flag: lines} if lines else {}
        if len(record) > 1:
            self._flags.write("", json.dumps(record, ensure_ascii=False) + "\n")

    def finish(self) -> list[str]:
        """Write ``data.yaml``."""
        self._flags.close()
        folders = {split: f"images/{split}" for split in SPLITS if split in self._splits}
        if WHOLE in self._splits:  # there are no splits; Ultralytics wants both keys
            folders |= {"train": f"images/{WHOLE}", "val": f"images/{WHOLE}"}
        task = {"task": "segment"} if self._is_segmented else {}
        settings = folders | {"names": dict(enumerate(self.labels))} | task
        text = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False, width=2**31)
        (self.folder / "data.yaml").write_text(text, encoding="utf-8", newline="\n")
        return ["data.yaml"]


def ring_of(found: DetectedObject) -> Ring | None:
    """The polygon of a line: a single one, whose extent is the object's box; None if there is none."""
    rings = found.segmentation
    if rings is None or isinstance(rings, Rle) or len(rings) > 1:
        return None
    return rings[0] if fits(extent(rings), found.bbox_2d, ROUNDING) else None


def corners_of(found: DetectedObject) -> Ring:
    """A box as a polygon."""
    x1, y1, x2, y2 = found.bbox_2d
    return x1, y1, x2, y1, x2, y2, x1, y2
