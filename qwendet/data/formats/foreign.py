"""Annotations of other tools: not read, but told by name, with the way to a format that is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwendet.files import list_folder

HEAD_BYTES = 1 << 18
"""What is looked at of a file."""
MAX_FILES = 200
"""Files of a folder that are looked at."""
_EXPORT = "export it as COCO, Pascal VOC or YOLO there"
_WRITE = "write it as COCO, VOC, YOLO or JSONL"
_VIA = "annotations of VIA (VGG Image Annotator)"
_LABELME = "labelme2voc.py and labelme2coco.py, which come with it, write VOC and COCO"
_COCO_BOXES = (
    "write it as COCO, whose bbox is [x, y, width, height] as well, and not the corners of our JSONL"
)
_LISTS = 'give one that begins like {"images": […], "annotations": […], "categories": […]}'
_RESULTS = "give the file with the annotations: predictions are no ground truth"
SIGNS: tuple[tuple[str, tuple[bytes, ...], str, str], ...] = (
    (".json", (b'"regions"', b'"shape_attributes"'), _VIA, "open it in VIA and export it as COCO"),
    (".json", (b'"shapes"', b'"imagePath"'), "annotations of Labelme", _LABELME),
    (".json", (b'"annotations"', b'"coordinates"'), "CreateML's annotations", _EXPORT),
    (".json", (b'"from_name"', b'"to_name"'), "Label Studio's own JSON", _EXPORT),
    (".json", (b'"asset"', b'"regions"'), "a project of VoTT", "export it as Pascal VOC there"),
    (".json", (b'"image_id"', b'"score"'), "a list of detections (COCO results)", _RESULTS),
    (".json", (b'"images"', b'"file_name"'), "a COCO file without annotations at its top", _LISTS),
    (".json", (b'"items"', b'"categories"', b'"label"'), "Datumaro's own JSON", _EXPORT),
    (".jsonl", (b'"file_name":', b'"objects":'), "metadata of a Hugging Face image folder", _COCO_BOXES),
    (".csv", (b"",), "a table of boxes", _WRITE),
    (".tsv", (b"",), "a table of boxes", _WRITE),
    (".parquet", (b"",), "a Parquet file", _WRITE),
    (".tfrecord", (b"",), "TFRecords", _WRITE),
    (".record", (b"",), "TFRecords", _WRITE),
)  # fmt: skip
"""Ending, what the beginning of the file holds, what that is, and what to do."""
FOLDERS = {
    "labeltxt": ("DOTA's label files", "write them as YOLO's oriented boxes, with a data.yaml"),
    "label_2": ("KITTI's label files", _WRITE),
}


def foreign(path: Path) -> tuple[str, str] | None:
    """What a file or folder without a data set of ours holds instead; and what to do about it."""
    for file in _candidates(path):
        if file.is_dir():
            what, fix = FOLDERS[file.name.lower()]
            return f"{what} ({file.name}/)", fix
        try:
            with file.open("rb") as opened:
                head = opened.read(HEAD_BYTES)
        except OSError:
            continue
        for suffix, marks, what, fix in SIGNS:
            if file.suffix.lower() == suffix and all(mark in head for mark in marks):
                return f"{what} ({file.name})", fix
    return None


def _candidates(path: Path) -> Iterator[Path]:
    """Files, and folders of telling names, in a folder and those directly in it."""
    if path.is_file():
        yield path
        return
    children = list_folder(path)
    for folder in (path, *(child for child in children if child.is_dir())):
        files = children if folder == path else list_folder(folder)
        yield from (file for file in files if file.name.lower() in FOLDERS and file.is_dir())
        yield from [file for file in files if file.suffix.lower() in {sign[0] for sign in SIGNS}][:MAX_FILES]
