"""What others write of an image becomes our record: rows of Hugging Face's data sets, COCO's annotations.

{"objects": {"bbox": [[40, 8, 10, 20]], "category": ["cat"]}}  ┐
{"annotations": [{"bbox": [40, 8, 10, 20], "label": "cat"}]}   ├─► {"images": […], "objects": […]}
{"objects": [{"bbox_2d": [40, 8, 50, 28], "desc": "cat"}]}     ┘
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qwendet.data.parquet import FEDERATED
from qwendet.data.samples import OBJECT_KEYS
from qwendet.errors import DataError

OBJECTS = ("objects", "annotations")
BOXES = ("bbox", "bboxes", "box", "boxes")
LABELS = ("category", "categories", "label", "labels", "class", "name", "category_id")
FLAGS = {"crowd": ("crowd", "iscrowd", "is_crowd"), "difficult": ("difficult", "ignore")}
ROUNDING = 1
"""Pixels by which a box may leave its image, whichever way it is written."""
FIX = (
    'write objects: a list of {"bbox": [x, y, width, height], "category": "cat"}, or of each of these a list'
)

Size = tuple[int, int]


def objects_of(values: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """Objects one by one, however they are written: a list of them, or a list of each of their values."""
    key = next((key for key in OBJECTS if key in values), None)
    objects = [] if key is None else values[key] or []
    is_of_lists = isinstance(objects, Mapping) and all(isinstance(own, list) for own in objects.values())
    is_of_objects = isinstance(objects, list) and all(isinstance(own, Mapping) for own in objects)
    if key is None or not (is_of_lists or is_of_objects):
        got = "no such key" if key is None else f"{objects!r:.80}"
        raise DataError(f"objects: expected a list of boxes and labels, got {got}", where, FIX)
    if not isinstance(objects, Mapping):
        return list(objects)
    try:
        return [dict(zip(objects, own, strict=True)) for own in zip(*objects.values(), strict=True)]
    except ValueError as error:
        counts = ", ".join(f"{len(own)} {key}" for key, own in objects.items())
        what = f"objects: expected as many of each, got {counts}"
        raise DataError(what, where, "give each box one of each") from error


def box_of(own: Mapping[str, Any]) -> Any:
    """The box of an object as another tool writes it; ``None`` without one."""
    return next((own[name] for name in BOXES if name in own), None)


def label_of(own: Mapping[str, Any], names: Mapping[int, str]) -> Any:
    """The label of an object, by its name where it is a number that has one."""
    value = next((own[name] for name in LABELS if own.get(name) is not None), None)
    return names.get(value, value) if isinstance(value, int) else value


def record_line(
    values: Mapping[str, Any],
    image: str,
    where: str,
    names: Mapping[int, str] = MappingProxyType({}),
    *,
    corners: bool = False,
) -> bytes:
    """A line of a sample file; what is no sample then is reported by who parses it.

    Args:
        values: what is said of the image.
        image: its path.
        where: of the values.
        names: of labels that are numbers.
        corners: boxes are ``[x1, y1, x2, y2]``, else ``[x, y, width, height]``; ``bbox_2d`` is corners.

    Raises:
        DataError: for objects that are no list.
    """
    known = _names(values.get("categories")) or names
    objects = [_object(own, known, corners=corners) for own in objects_of(values, where)]
    record: dict[str, Any] = {"images": [image], "objects": objects}
    record |= {key: values[key] for key in ("width", "height") if values.get(key) is not None}
    if isinstance(labels := values.get("labels"), list) and all(isinstance(label, str) for label in labels):
        record["labels"] = labels  # of ours: numbers are of a classification
    record |= {key: values[key] for key in FEDERATED if values.get(key) is not None}
    return json.dumps(record, default=str).encode() + b"\n"


def _object(own: Mapping[str, Any], names: Mapping[int, str], *, corners: bool) -> dict[str, Any]:
    if "bbox_2d" in own:
        return {key: value for key, value in own.items() if key in OBJECT_KEYS and value is not None}
    found: dict[str, Any] = {"bbox_2d": box_of(own), "desc": label_of(own, names)}
    if not corners and is_box(found["bbox_2d"]):
        x, y, width, height = found["bbox_2d"]
        found["bbox_2d"] = [x, y, x + width, y + height]
    found |= {flag: True for flag, keys in FLAGS.items() if any(own.get(key) for key in keys)}
    return found | ({"area": own["area"]} if own.get("area") else {})


def is_box(value: Any) -> bool:
    """Whether something is four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(isinstance(own, int | float) for own in value)


def _names(categories: Any) -> dict[int, str]:
    """Names of COCO's categories."""
    listed = categories if isinstance(categories, list) else []
    return {
        own["id"]: own["name"] for own in listed if isinstance(own, Mapping) and {"id", "name"} <= own.keys()
    }


def are_corners(boxes: Iterable[tuple[Sequence[float], Size]], where: str) -> tuple[bool, str]:
    """Whether boxes are corners and not, as documented, COCO's; by how many are impossible either way.

    Args:
        boxes: each with the size of its image.
        where: who is blamed if they are neither.

    Returns:
        That, and how it is known.

    Raises:
        DataError: if most are impossible either way.
    """
    count = as_coco = as_corners = 0
    for (x, y, right, low), (width, height) in boxes:
        count += 1
        as_coco += x + right > width + ROUNDING or y + low > height + ROUNDING
        as_corners += right <= x or low <= y or right > width + ROUNDING or low > height + ROUNDING
    counts = f"of {count} boxes {as_coco} are impossible as COCO's, {as_corners} as corners"
    if min(as_coco, as_corners) > count / 2:
        what = f"the boxes are in no known form: {counts}"
        raise DataError(what, where, "write [x, y, width, height] in pixels")
    is_corners = as_corners < as_coco
    return is_corners, f"{'[x1, y1, x2, y2]' if is_corners else '[x, y, width, height]'} ({counts})"
