"""Which data set format a path holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qwendet.data.records import SPLITS, WHOLE
from qwendet.data.voc import voc_folders
from qwendet.errors import DataError

Format = Literal["jsonl", "voc", "coco", "yolo"]


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
            "or YOLO (data.yaml or labels/)",
            str(path),
            "give the folder that holds these directly",
        )
    return found


def _detect_file(path: Path) -> Format | None:
    if path.suffix == ".jsonl":
        return "jsonl"
    if path.suffix == ".json" and _is_coco(path):
        return "coco"
    return "yolo" if path.name in ("data.yaml", "data.yml") else None


def _detect_folder(folder: Path) -> Format | None:
    if any((folder / f"{split}.jsonl").is_file() for split in (*SPLITS, WHOLE)):
        return "jsonl"
    if voc_folders(folder):
        return "voc"
    if any(_is_coco(path) for pattern in ("*.json", "annotations/*.json") for path in folder.glob(pattern)):
        return "coco"
    is_yolo = any((folder / name).is_file() for name in ("data.yaml", "data.yml"))
    return "yolo" if is_yolo or (folder / "labels").is_dir() else None


def _is_coco(path: Path) -> bool:
    """Whether a JSON file holds the key ``annotations``; read in pieces, because COCO's own has 450 MB."""
    key, seen = b'"annotations"', b""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            seen = seen[-len(key) :] + piece
            if key in seen:
                return True
    return False
