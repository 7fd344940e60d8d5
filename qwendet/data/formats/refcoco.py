"""Referring expressions of RefCOCO, RefCOCO+ and RefCOCOg: each becomes a sample that asks for it alone.

instances.json, refs(unc).json     refer's: COCO instances, and the list of its pickle as JSON or JSONL
refcoco_testA.jsonl                rows with image, sent or expression, and bbox as corners: a file a split
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qwendet.data.formats.coco_layout import end_in
from qwendet.data.formats.coco_table import CocoImage, Key, key_of, read_box, read_image
from qwendet.data.formats.fitting import join_image
from qwendet.data.formats.json_stream import records, stream_lists
from qwendet.data.formats.records import WHOLE, Box, Item, Record, Source, or_problems
from qwendet.data.samples import DetectedObject, Turn, check_label
from qwendet.errors import DataError
from qwendet.files import list_folder

PICKLES = (".p", ".pkl", ".pickle")
INSTANCES = "instances.json"
IMAGE_FOLDERS = ("", "../images/mscoco/images/train2014", "../train2014", "../images")
"""Where refer keeps the images, from the folder of the references."""
_SPLITS = re.compile(r"(?:^|[^A-Za-z])(train|val|testA|testB|test)(?:idation)?$")


class _Instances(NamedTuple):
    """Images by id, and box and image id of each annotation."""

    images: Mapping[Key, CocoImage]
    boxes: Mapping[Key, tuple[Box, Key]]


def open_refcoco(path: Path, image_dir: Path | None = None) -> Source:
    """Open a list of references.

    Raises:
        DataError: for a pickle, for more than one list, and if there is none.
    """
    file = _references(path)
    instances = file.with_name(INSTANCES)
    table = _read_instances(instances) if instances.is_file() else _Instances({}, {})
    roots = [image_dir] if image_dir else [(file.parent / folder).resolve() for folder in IMAGE_FOLDERS]

    def items() -> Iterator[Item]:
        for where, entry in records(file):
            yield from or_problems(_records(entry, table, where, file, root))

    first = next(iter(table.images.values()), None)
    root = next((folder for folder in roots if first and end_in(folder, first.name)), roots[0])
    return Source(root, 0, items())


def _references(path: Path) -> Path:
    files = [path] if path.is_file() else list_folder(path)
    found = [file for file in files if file.suffix in (".json", ".jsonl") and file.name != INSTANCES]
    if not found and (pickles := [file for file in files if file.suffix in PICKLES]):
        old, new = pickles[0], pickles[0].with_suffix(".json")
        code = f"import json, pickle; json.dump(pickle.load(open({str(old)!r}, 'rb'), encoding='latin1'), "
        code += f"open({str(new)!r}, 'w'))"
        what = "this is a pickle, which can run any code when it is opened"
        fix = f"if you trust its origin, write it as JSON: python -c {shlex.quote(code)}"
        raise DataError(what, str(old), fix)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        what = f"expected one list of references (refs(unc).json, or rows as JSONL), got {names}"
        raise DataError(what, str(path), "give the file itself")
    return found[0]


def _read_instances(file: Path) -> _Instances:
    images, boxes = {}, {}
    for key, index, entry, *_ in stream_lists(file):
        where = f"{file}: {key}[{index}]"
        if index >= 0 and key == "images":
            images[key_of(entry, "id", where)] = read_image(entry, where)
        elif index >= 0 and key == "annotations":
            box, _ = read_box(entry, None, where)
            boxes[key_of(entry, "id", where)] = box, key_of(entry, "image_id", where)
    return _Instances(images, boxes)


def _records(entry: Any, table: _Instances, where: str, file: Path, root: Path) -> Iterator[Record]:
    """A record for each expression of an entry."""
    if not isinstance(entry, dict):
        raise DataError(f"expected an object, got {entry!r:.60}", where, "give the list of references")
    image, box = _own(entry, where) if "sentences" not in entry else _referred(entry, table, where)
    sentences = entry.get("sentences", [entry.get("sent", entry.get("expression"))])
    split = _SPLITS.search(str(entry.get("split") or file.stem))
    for sentence in sentences if isinstance(sentences, list) else [None]:
        text = sentence.get("sent") if isinstance(sentence, dict) else sentence
        label = check_label(text, where, "sent")
        name = join_image("", end_in(root, image.name) or image.name, where)
        turn = Turn(name, (DetectedObject(box, label),), image.width, image.height, labels=(label,))
        yield Record(split[1] if split else WHOLE, turn, where, name, (where,), size="the size in the file")


def _referred(entry: Mapping[str, Any], table: _Instances, where: str) -> tuple[CocoImage, Box]:
    """Image and box that a reference is of; some exports on the hub bring both along, as JSON in a text."""
    if isinstance(entry.get("raw_anns"), str):
        image, annotation = (_unpacked(entry, key, where) for key in ("raw_image_info", "raw_anns"))
        return read_image(image, where), read_box(annotation, None, where)[0]
    key = key_of(entry, "ann_id", where)
    if key not in table.boxes:
        what = f"there is no annotation with the id {key!r} in {INSTANCES}"
        raise DataError(what, where, f"put the {INSTANCES} of the same data set beside the references")
    box, image_key = table.boxes[key]
    if image_key not in table.images:
        raise DataError(f"there is no image with the id {image_key!r}", where, f"correct {INSTANCES}")
    return table.images[image_key], box


def _unpacked(entry: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(entry[key]))
    except (KeyError, TypeError, ValueError) as error:
        what = f"{key}: expected an object as JSON in a text, got {entry.get(key)!r:.60}"
        raise DataError(what, where, f"correct it, or put {INSTANCES} beside the references") from error


def _own(entry: Mapping[str, Any], where: str) -> tuple[CocoImage, Box]:
    """Image and box that a row has itself: corners, in pixels."""
    name = entry.get("image", entry.get("img_path"))
    image = read_image({**entry, "file_name": name}, where)
    corners = entry.get("bbox")
    try:
        x1, y1, x2, y2 = map(float, corners)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        what = f"bbox: expected [x1, y1, x2, y2], got {corners!r:.80}"
        raise DataError(what, where, "write four numbers") from error
    return image, read_box({"bbox": [x1, y1, x2 - x1, y2 - y1]}, None, where)[0]
