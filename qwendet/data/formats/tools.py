"""Annotation tools: by which signs the files of each are known, and its reader where they are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from qwendet.data.formats.createml import read_createml
from qwendet.data.formats.cvat import read_cvat
from qwendet.data.formats.datumaro import read_datumaro
from qwendet.data.formats.drawn import Reader
from qwendet.data.formats.drawn_records import open_drawn
from qwendet.data.formats.huggingface import read_huggingface
from qwendet.data.formats.labelme import read_labelme
from qwendet.data.formats.labelstudio import read_labelstudio
from qwendet.data.formats.openimages import read_openimages
from qwendet.data.formats.records import Finding, Format, Source
from qwendet.data.formats.supervisely import read_supervisely
from qwendet.data.formats.via import read_via
from qwendet.errors import DataError
from qwendet.files import files_below, list_folder

HEAD_BYTES = 1 << 18
"""What is looked at of a file."""
MAX_FILES = 200
"""Files of a folder that are looked at."""


class Tool(NamedTuple):
    """A tool.

    Attributes:
        what: its files, in words.
        read: its reader; None of files that are named in errors alone.
        suffixes: how they end.
        signs: patterns, all of which the beginning of a file has.
        one_an_image: each image has a file of its name.
    """

    what: str
    read: Reader | None
    suffixes: tuple[str, ...]
    signs: tuple[str, ...]
    one_an_image: bool = False

    def wrote(self, file: Path) -> bool:
        """Whether a file is of this tool, by its ending and its beginning."""
        if file.suffix.lower() not in self.suffixes or not file.is_file():
            return False
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
        return all(re.search(sign.encode(), head) for sign in self.signs)


TOOLS: Mapping[Format, Tool] = {
    "cvat": Tool("CVAT's XML", read_cvat, (".xml",), (r"<annotations\b", r"<(image|track)\b")),
    "labelstudio": Tool(
        "Label Studio's JSON",
        read_labelstudio,
        (".json",),
        (r"^\s*\[", r'"result"\s*:', r'"(annotations|completions)"\s*:'),
    ),
    "labelme": Tool(
        "Labelme's JSON", read_labelme, (".json",), (r'"shapes"\s*:', r'"imagePath"\s*:'), one_an_image=True
    ),
    "via": Tool(
        "VIA's JSON or CSV",
        read_via,
        (".json", ".csv"),
        (r'"regions"\s*:|region_id', r'"shape_attributes"|"_via_img_metadata"|region_shape_attributes'),
    ),
    "createml": Tool(
        "CreateML's JSON", read_createml, (".json",), (r"^\s*\[", r'"annotations?"\s*:', r'"coordinates"\s*:')
    ),
    "datumaro": Tool(
        "Datumaro's JSON", read_datumaro, (".json",), (r'"items"\s*:\s*\[', r'"categories"\s*:\s*\{')
    ),
    "supervisely": Tool(
        "Supervisely's JSON (ann/)",
        read_supervisely,
        (".json",),
        (r'"objects"\s*:\s*\[', r'"size"\s*:\s*\{'),
        one_an_image=True,
    ),
    "openimages": Tool("Open Images' CSV", read_openimages, (".csv",), (r"ImageID,.*LabelName,.*XMin,",)),
    "huggingface": Tool(
        "metadata.jsonl with objects (Hugging Face)",
        read_huggingface,
        (".jsonl",),
        (r'"file_name"\s*:', r"\bobjects\b"),
    ),
}


_WRITE = "write it as COCO, VOC, YOLO or JSONL"
_LISTS = 'give one that begins like {"images": […], "annotations": […], "categories": […]}'
_RESULTS = "give the file with the annotations: predictions are no ground truth"
_VIA_3 = ('"metadata"', '"vid"', '"xy"')
UNREAD: tuple[tuple[Tool, str], ...] = (
    (Tool("Label Studio's JSON-MIN", None, (".json",), ('"original_width"',)), "export it as JSON there"),
    (Tool("a project of VIA 3", None, (".json",), _VIA_3), "export it as COCO there"),
    (Tool("a project of VoTT", None, (".json",), ('"asset"', '"regions"')), "export it as Pascal VOC there"),
    (Tool("a list of detections (COCO results)", None, (".json",), ('"image_id"', '"score"')), _RESULTS),
    (
        Tool("a COCO file without annotations at its top", None, (".json",), ('"images"', '"file_name"')),
        _LISTS,
    ),
    (Tool("a table of boxes", None, (".csv", ".tsv"), ()), _WRITE),
    (Tool("TFRecords", None, (".tfrecord", ".record"), ()), _WRITE),
)
"""Tools whose files are not read, but named in the error; and what to do."""
FOLDERS = {
    "labeltxt": ("DOTA's label files", "write them as YOLO's oriented boxes, with a data.yaml"),
    "label_2": ("KITTI's label files", _WRITE),
}


def tool_of(path: Path) -> Format | None:
    """The tool that wrote a file, or files of a folder and of those up to two below it."""
    suffixes = {suffix for tool in TOOLS.values() for suffix in tool.suffixes}
    files = files_near(path, suffixes)
    return next((name for file in files for name, tool in TOOLS.items() if tool.wrote(file)), None)


def foreign(path: Path) -> tuple[str, str] | None:
    """What a file or folder without a data set of ours holds instead; and what to do about it."""
    name = tool_of(path)
    if name is not None:
        return TOOLS[name].what, f"--from {name} reads it"
    near = [path, *(child for child in list_folder(path) if child.is_dir())]
    for inner in (inner for folder in near for inner in list_folder(folder) if inner.is_dir()):
        if inner.name.lower() in FOLDERS:
            what, fix = FOLDERS[inner.name.lower()]
            return f"{what} ({inner.name}/)", fix
    for file in files_near(path, {suffix for tool, _ in UNREAD for suffix in tool.suffixes}, depth=1):
        for tool, fix in UNREAD:
            if tool.wrote(file):
                return f"{tool.what} ({file.name})", fix
    return None


def files_near(folder: Path, suffixes: set[str], depth: int = 2) -> Iterator[Path]:
    """The first files of these endings in a folder and up to ``depth`` below it; or a file itself."""
    children = [folder] if folder.is_file() else list_folder(folder)
    yield from [file for file in children if file.suffix.lower() in suffixes][:MAX_FILES]
    for child in children if depth else ():
        if not child.suffix and child.is_dir():
            yield from files_near(child, suffixes, depth - 1)


def open_tool(path: Path, tool: Tool, image_dir: Path | None) -> Source:
    """Open the files of a tool.

    Raises:
        DataError: if there are none.
    """
    given = [path] if path.is_file() else list(files_below(path, frozenset(tool.suffixes)))
    files = [file for file in given if path.is_file() or tool.wrote(file)]
    assert tool.read is not None
    if not files:
        fix = "give the folder that holds them, or see what --from auto finds"
        raise DataError(f"expected {tool.what}, got none", str(path), fix)
    opened = open_drawn(path, files, tool.read, image_dir, one_an_image=tool.one_an_image)
    homes = {file.parent for file in files}
    left = [file for file in set(given) - set(files) if tool.one_an_image and file.parent in homes]
    notes = [Finding("unlisted", str(file), f"not {tool.what}") for file in sorted(left)]
    return replace(opened, items=chain(notes, opened.items))
