"""Records as COCO files: ``annotations/instances_<split>.json``, images in ``images/``."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwendet.data.formats.writer import SplitFiles, Writer, as_coco, number
from qwendet.data.samples import DetectedObject, Turn

DECIMALS = 6
"""Places that sizes are rounded to: the difference of two corners is not exact."""


class CocoWriter(Writer):
    """Writes COCO; category, image and annotation ids count from 1.

    Images go to one file and annotations to another beside it while they come, so that memory stays
    small; the two are joined at the end.
    """

    def __init__(self, folder: Path, *, has_images: bool = True) -> None:
        super().__init__(folder, has_images=has_images)
        self._images = SplitFiles(folder / "annotations", "instances_{}.json", self.files)
        self._annotations = SplitFiles(folder / "annotations", ".annotations_{}.part", self.files)
        self._frequencies: dict[str, dict[str, str]] = {}
        self._num_images: Counter[str] = Counter()
        self._num_boxes: Counter[str] = Counter()

    def add(self, split: str, turn: Turn, image: str) -> None:
        """Write an entry of ``images``, and one of ``annotations`` a box."""
        is_first = not self._num_images[split]
        self._num_images[split] += 1
        image_id = self._num_images[split]
        entry: dict[str, Any] = {"id": image_id, "file_name": image}
        entry |= {"width": turn.width, "height": turn.height}
        if turn.neg_labels is not None:
            entry["neg_category_ids"] = self._ids(turn.neg_labels)
            entry["not_exhaustive_category_ids"] = self._ids(turn.not_exhaustive_labels)
        start = '{"images": [\n' if is_first else ",\n"
        self._images.write(split, start + json.dumps(entry, ensure_ascii=False))
        for found in turn.objects:
            if found.frequency is not None:
                self._frequencies[found.desc] = {"frequency": found.frequency}
            self._num_boxes[split] += 1
            box_id = self._num_boxes[split]
            line = json.dumps(self._annotation(found, image_id, box_id))
            self._annotations.write(split, line if box_id == 1 else ",\n" + line)

    def _ids(self, labels: Sequence[str]) -> list[int]:
        return [self.number_of(label) + 1 for label in labels]

    def _annotation(self, found: DetectedObject, image_id: int, box_id: int) -> dict[str, Any]:
        x1, y1, x2, y2 = found.bbox_2d
        width, height = round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)
        record: dict[str, Any] = {
            "id": box_id,
            "image_id": image_id,
            "category_id": self.number_of(found.desc) + 1,
            "bbox": [number(value) for value in (x1, y1, width, height)],
            "area": number(round(width * height, DECIMALS) if found.area is None else found.area),
            "iscrowd": int(found.crowd),
            "segmentation": [] if found.segmentation is None else as_coco(found.segmentation),
        }
        return record | {"difficult": 1} if found.difficult else record

    def finish(self) -> list[str]:
        """Join images and annotations, add the categories."""
        categories = [
            {"id": index, "name": label, "supercategory": "", **self._frequencies.get(label, {})}
            for index, label in enumerate(self.labels, start=1)
        ]
        end = f'\n],\n"categories": {json.dumps(categories, ensure_ascii=False)}}}\n'
        self._annotations.close()
        splits = self._images.close()
        for split in splits:
            part = self._annotations.path(split)
            with self._images.path(split).open("a", encoding="utf-8", newline="\n") as file:
                file.write('\n],\n"annotations": [\n')
                if part.is_file():
                    with part.open(encoding="utf-8") as lines:
                        shutil.copyfileobj(lines, file, 1 << 20)
                    part.unlink()
                file.write(end)
        return [f"annotations/instances_{split}.json" for split in splits]
