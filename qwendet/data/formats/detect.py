"""Which data set format a path holds, and its reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from qwendet.data.formats.box_frames import BoxFrame
from qwendet.data.formats.coco import open_coco
from qwendet.data.formats.coco_layout import coco_files, is_coco
from qwendet.data.formats.conversation_layouts import is_conversations
from qwendet.data.formats.conversations import conversation_files, open_conversations
from qwendet.data.formats.fitting import fitted
from qwendet.data.formats.jsonl import jsonl_files, open_samples
from qwendet.data.formats.records import SAMPLES, Format, Item, Record, Source
from qwendet.data.formats.refcoco import open_refcoco
from qwendet.data.formats.tools import TOOLS, files_near, foreign, open_tool, tool_of
from qwendet.data.formats.voc import open_voc
from qwendet.data.formats.voc_layout import is_voc
from qwendet.data.formats.yolo import open_yolo
from qwendet.data.formats.yolo_layout import is_yolo, settings_files
from qwendet.errors import DataError
from qwendet.files import is_url, list_folder, tell_unreadable

MAX_NAMED, MAX_DEPTH, MAX_FOLDERS = 5, 3, 200
"""How far data sets are looked for below a folder that is none."""
SHARDS: Mapping[str, Format] = {".parquet": "parquet", ".tar": "webdataset"}


@tell_unreadable()
def detect_format(path: Path) -> Format:
    """Tell which data set format a path holds, from names and not from contents as far as they suffice.

    Where a folder holds several, the first of JSONL, VOC, COCO, YOLO counts.
    """
    if is_url(path):
        return "jsonl"  # or shards
    if path.is_file():
        found = _detect_file(path)
    elif path.is_dir():
        found = _detect_folder(dataset_in(path))
    else:
        raise DataError("expected a data set, got no such file or folder", str(path), "correct the path")
    if found is None and path.is_file() and path.stat().st_size == 0:
        raise DataError("expected a data set, got an empty file", str(path), "export or copy it again")
    below = _below(path) if found is None else []
    if below:
        names = ", ".join(inner.relative_to(path).as_posix() for inner in below)
        raise DataError(
            f"there is no data set in this folder, but below it: {names}", str(path), "give one of them"
        )
    written_by = [path] if found is None else list(jsonl_files(path).values())[:1] if found == "jsonl" else []
    for other, fix in filter(None, map(foreign, written_by)):
        raise DataError(f"no data set found, but {other}: not read", str(path), fix)
    if found is None:
        raise DataError(
            "no data set found: expected a .jsonl file, a folder with train.jsonl or all.jsonl, "
            "VOC (Annotations/*.xml, JPEGImages/), COCO (a .json with annotations), "
            "YOLO (data.yaml, obj.data or classes.txt), conversations (messages in .json or .jsonl), "
            "shards (.parquet, .tar with a .json an image), "
            f"or {', '.join(tool.what for tool in TOOLS.values())}",
            str(path),
            "give the folder that holds these directly",
        )
    return found


def dataset_in(path: Path) -> Path:
    """``path`` itself if it is a data set, else the only folder in it that is one of COCO or YOLO."""
    if not path.is_dir() or _detect_folder(path) is not None:
        return path
    children = (child for child in list_folder(path) if child.is_dir())
    found = [child for child in children if _detect_folder(child) in ("coco", "yolo")]
    return found[0] if len(found) == 1 else path


def _below(path: Path) -> list[Path]:
    """Data sets further down, and YOLO's settings: the first ``MAX_NAMED`` of them."""
    found: list[Path] = []
    waiting = [(path, 0)]
    for _ in range(MAX_FOLDERS):
        folder, depth = waiting.pop(0) if waiting else (None, 0)
        if folder is None or len(found) >= MAX_NAMED:
            break
        if depth and _detect_folder(folder) is not None:
            found.append(folder)
            continue
        found += settings_files(folder)
        if depth < MAX_DEPTH:
            waiting += [(child, depth + 1) for child in list_folder(folder) if child.is_dir()]
    return found[:MAX_NAMED]


def _detect_file(path: Path) -> Format | None:
    if path.suffix.lower() in (".json", ".jsonl") and is_conversations(path):
        return "conversations"
    if path.suffix in SHARDS:
        return SHARDS[path.suffix]
    if tool := tool_of(path):
        return tool
    if path.suffix.lower() == ".jsonl":
        return "jsonl"
    if path.suffix.lower() == ".json":
        return "coco" if is_coco(path) else None
    return "yolo" if is_yolo(path) else None


def _detect_folder(folder: Path) -> Format | None:
    if jsonl_files(folder):
        return "conversations" if any(map(is_conversations, jsonl_files(folder).values())) else "jsonl"
    if is_voc(folder):
        first = next(files_near(folder, {".xml"}), None)
        return "cvat" if first and TOOLS["cvat"].wrote(first) else "voc"
    if files := coco_files(folder):
        return tool_of(files[0]) or "coco"
    if conversation_files(folder):
        return "conversations"
    if is_yolo(folder):
        return "yolo"
    shard = next(files_near(folder, set(SHARDS)), None)
    return tool_of(folder) if shard is None else SHARDS[shard.suffix]


def open_source(
    path: Path,
    source: Format | str = "auto",
    image_dir: Path | None = None,
    *,
    may_be_absent: bool = False,
    frame: BoxFrame | None = None,
    split: str | None = None,
) -> Source:
    """Open a data set of any format, or one split of it, its boxes held against its images."""
    written = open_written(path, source, image_dir, may_be_absent=may_be_absent, frame=frame)
    if split is not None:
        items = (item for item in written.items if not isinstance(item, Record) or item.split == split)
        written = replace(written, items=items)
    return fitted(written, may_be_absent=may_be_absent)


@tell_unreadable()
def open_written(
    path: Path,
    source: Format | str = "auto",
    image_dir: Path | None = None,
    *,
    may_be_absent: bool = True,
    frame: BoxFrame | None = None,
) -> Source:
    """Open a data set of any format, its boxes and sizes as they are written; arguments as above."""
    if image_dir is not None and not image_dir.is_dir():
        raise DataError("expected a folder of images, got none", str(image_dir), "correct --image-dir")
    path = dataset_in(path)
    if source == "auto":
        source = detect_format(path)
    if not path.exists():
        raise DataError("expected a data set, got no such file or folder", str(path), "correct the path")
    if frame is not None and source != "conversations":
        what = f"--frame is about the boxes of conversations, and this is {source}"
        raise DataError(what, str(path), "leave --frame out")
    if source == "conversations":
        opened = open_conversations(path, image_dir, frame)
    elif tool := {str(name): tool for name, tool in TOOLS.items()}.get(source):
        opened = open_tool(path, tool, image_dir)
    elif source in SAMPLES:
        opened = open_samples(path, image_dir)
    elif opener := {"yolo": open_yolo, "refcoco": open_refcoco}.get(source):
        opened = opener(path, image_dir)
    else:
        opened = (open_coco if source == "coco" else open_voc)(path, image_dir, may_be_absent=may_be_absent)
    return replace(opened, items=_readable(opened.items))


def _readable(items: Iterator[Item]) -> Iterator[Item]:
    with tell_unreadable():
        yield from items
