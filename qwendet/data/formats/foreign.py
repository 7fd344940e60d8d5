"""Annotations of other tools: not read, but named in the error, with the way to a format that is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwendet.data.formats.tools import HEAD_BYTES, TOOLS, files_near, tool_of
from qwendet.files import list_folder

_WRITE = "write it as COCO, VOC, YOLO or JSONL"
_LISTS = 'give one that begins like {"images": […], "annotations": […], "categories": […]}'
_RESULTS = "give the file with the annotations: predictions are no ground truth"
SIGNS: tuple[tuple[str, tuple[bytes, ...], str, str], ...] = (
    (".json", (b'"original_width"',), "Label Studio's JSON-MIN", "export it as JSON there"),
    (".json", (b'"metadata"', b'"vid"', b'"xy"'), "a project of VIA 3", "export it as COCO there"),
    (".json", (b'"asset"', b'"regions"'), "a project of VoTT", "export it as Pascal VOC there"),
    (".json", (b'"image_id"', b'"score"'), "a list of detections (COCO results)", _RESULTS),
    (".json", (b'"images"', b'"file_name"'), "a COCO file without annotations at its top", _LISTS),
    (".csv", (b"",), "a table of boxes", _WRITE),
    (".tsv", (b"",), "a table of boxes", _WRITE),
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
    name = tool_of(path)
    if name is not None:
        return TOOLS[name].what, f"--from {name} reads it"
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
    if path.is_dir():
        near = [path, *(child for child in list_folder(path) if child.is_dir())]
        yield from (
            inner
            for folder in near
            for inner in list_folder(folder)
            if inner.name.lower() in FOLDERS and inner.is_dir()
        )
    yield from files_near(path, {sign[0] for sign in SIGNS}, depth=1)
