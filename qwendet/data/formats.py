"""Which data set format a path holds."""

from __future__ import annotations

from pathlib import Path

from qwendet.data.coco_layout import coco_files, is_coco
from qwendet.data.jsonl import jsonl_files
from qwendet.data.records import Format
from qwendet.data.voc_layout import is_voc
from qwendet.data.yolo_layout import is_yolo
from qwendet.errors import DataError


def detect_format(path: Path) -> Format:
    """Tell which data set format a path holds, from names and not from contents as far as they suffice.

    Where a folder holds several, the first of JSONL, VOC, COCO, YOLO counts.

    Args:
        path: a ``.jsonl`` file, a COCO ``.json`` file, a YOLO ``data.yaml``, or a folder.

    Raises:
        DataError: if it is absent or none of them.
    """
    if path.is_file():
        found = _detect_file(path)
    elif path.is_dir():
        found = _detect_folder(path)
    else:
        raise DataError("expected a data set, got no such file or folder", str(path), "correct the path")
    if found is None:
        raise DataError(
            "no data set found: expected a .jsonl file, a folder with train.jsonl or all.jsonl, "
            "VOC (Annotations/*.xml, JPEGImages/), COCO (a .json with annotations) "
            "or YOLO (data.yaml, obj.data or classes.txt)",
            str(path),
            "give the folder that holds these directly",
        )
    return found


def _detect_file(path: Path) -> Format | None:
    if path.suffix == ".jsonl":
        return "jsonl"
    if path.suffix.lower() == ".json":
        return "coco" if is_coco(path) else None
    return "yolo" if is_yolo(path) else None


def _detect_folder(folder: Path) -> Format | None:
    if jsonl_files(folder):
        return "jsonl"
    if is_voc(folder):
        return "voc"
    if coco_files(folder):
        return "coco"
    return "yolo" if is_yolo(folder) else None
