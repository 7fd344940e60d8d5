"""What ``infer`` found, for the tools that people look at it with and correct it in.

labelstudio  tasks with pre-annotations: percent of the image, a score for each region
fiftyone     ``labels.json`` of a FiftyOneImageDetectionDataset: fractions of the image, with confidence
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from qwendet.data.formats.drawn import Number, Row, Size, read_as
from qwendet.data.formats.json_stream import records
from qwendet.errors import DataError
from qwendet.files import atomic_file

Tool = Literal["labelstudio", "fiftyone"]


class _Detection(Row):
    bbox_2d: tuple[Number, Number, Number, Number]
    desc: str
    score: Number


class _Prediction(Row):
    image: str
    width: Size
    height: Size
    detections: list[_Detection]


def write_predictions_for(tool: Tool, found: Path, output: Path, least: float, url: str) -> int:
    """Write the predictions of a file of ``infer`` for a tool.

    Args:
        tool: which one.
        found: the file, JSONL.
        output: the JSON file to write, whole or not at all.
        least: scores below it are left out.
        url: what Label Studio finds an image's path behind.

    Returns:
        How many images there are.

    Raises:
        DataError: for a line that is none of ``infer``, and for no line at all.
    """
    begin, end = ("[\n", "\n]\n") if tool == "labelstudio" else ('{"labels": {\n', "\n}}\n")
    count = 0
    with atomic_file(output) as path, path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(begin)
        for count, (where, value) in enumerate(records(found), start=1):
            image = read_as(_Prediction, value, where)
            kept = [own for own in image.detections if own.score >= least]
            file.write(",\n" * (count > 1))
            file.write(_task(image, kept, url) if tool == "labelstudio" else _entry(image, kept))
        if not count:
            raise DataError("the file holds no predictions", str(found), "give what infer --output wrote")
        file.write(end)
    return count


def _task(image: _Prediction, kept: Sequence[_Detection], url: str) -> str:
    """A task of Label Studio, which sorts tasks by their score."""
    score = sum(own.score for own in kept) / len(kept) if kept else 0.0
    results = [_region(own, str(number), image) for number, own in enumerate(kept)]
    predicted = [{"model_version": "qwendet", "score": score, "result": results}]
    return json.dumps(
        {"data": {"image": url + quote(image.image)}, "predictions": predicted}, ensure_ascii=False
    )


def _region(own: _Detection, name: str, image: _Prediction) -> Mapping[str, Any]:
    x, y, width, height = (100 * value for value in _fractions(own, image))
    return {
        "id": name,
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": own.score,
        "value": {
            "x": x,
            "y": y,
            "width": width,
            "height": height,
            "rotation": 0,
            "rectanglelabels": [own.desc],
        },
    }


def _entry(image: _Prediction, kept: Sequence[_Detection]) -> str:
    """An image of FiftyOne's labels, by its path: without the ending, unless it is absolute."""
    boxes = [
        {"label": own.desc, "bounding_box": _fractions(own, image), "confidence": own.score} for own in kept
    ]
    path = PurePosixPath(image.image)
    name = str(path if path.is_absolute() else path.with_suffix(""))
    return f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(boxes, ensure_ascii=False)}"


def _fractions(own: _Detection, image: _Prediction) -> list[float]:
    x1, y1, x2, y2 = own.bbox_2d
    return [x1 / image.width, y1 / image.height, (x2 - x1) / image.width, (y2 - y1) / image.height]
