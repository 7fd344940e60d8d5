"""What was found in an image, and the file that predictions are written to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from qwendet.answers.diagnostics import AnswerFacts, joined_facts
from qwendet.config.schema import InferConfig
from qwendet.data.parquet import import_parquet
from qwendet.files import atomic_file

Source = Literal["head", "text"]
ROWS_OF_A_GROUP = 1000
CocoIds = tuple[Mapping[str, int | str], Mapping[str, int | str]]
"""Of images by their names, and of labels."""


@dataclass(frozen=True)
class Detection:
    """One found object.

    Attributes:
        bbox_2d: xyxy in pixels of the image as displayed, inside it.
        score: in ``[0, 1]``; the head's probability, or exp(mean log-probability of the box's tokens).
    """

    bbox_2d: tuple[float, float, float, float]
    desc: str
    score: float
    source: Source


@dataclass(frozen=True)
class Prediction:
    """All that was found in one image.

    Attributes:
        detections: sorted by score, best first.
        rejected: boxes of a text answer that were incomplete, impossible or outside the image.
        answer: what can be said of the text answer; ``None`` without one. No part of the output file.
    """

    image: str
    width: int
    height: int
    detections: tuple[Detection, ...]
    rejected: int
    answer: AnswerFacts | None = None

    def to_record(self) -> dict[str, Any]:
        """What is written of it, as JSON can hold it."""
        # asdict would copy every number of it, which takes longer than writing them.
        record = {**vars(self), "detections": [vars(item) for item in self.detections]}
        del record["answer"]
        return record

    def to_json(self, model: Mapping[str, object] | None = None) -> str:
        """One line of the output file; ``model`` says how it was asked where no manifest tells it."""
        record = self.to_record()
        return json.dumps(record if model is None else record | {"model": model}, ensure_ascii=False)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Prediction:
        """What :meth:`to_record` gave, with ``answer`` if it is there."""
        detections = tuple(
            Detection(tuple(item["bbox_2d"]), item["desc"], item["score"], item["source"])
            for item in record["detections"]
        )
        answer = record.get("answer")
        facts = None if answer is None else AnswerFacts(**answer)
        return cls(record["image"], record["width"], record["height"], detections, record["rejected"], facts)


def best_of(detections: Iterable[Detection], settings: InferConfig) -> tuple[Detection, ...]:
    """Those that are kept of an image, best first: of each source as many as if it answered alone."""
    kept, room = [], dict.fromkeys(("head", "text"), settings.max_detections)
    for item in sorted(detections, key=lambda item: (-item.score, item.source)):
        if room[item.source] and item.score >= settings.score_threshold:
            room[item.source] -= 1
            kept.append(item)
    return tuple(kept)


def joined(parts: Sequence[Prediction], settings: InferConfig, *, head_of_first: bool) -> Prediction:
    """One prediction of several of an image, each about other labels.

    With ``head_of_first`` the head scored all labels in the first; else each part has its own.
    """
    first, *others = parts
    found = [
        item for part in others for item in part.detections if item.source == "text" or not head_of_first
    ]
    return combined(parts, [*first.detections, *found], settings) if others else first


def combined(parts: Sequence[Prediction], found: Sequence[Detection], settings: InferConfig) -> Prediction:
    """One prediction of several of an image: the best of these detections, and facts of all text answers."""
    return replace(
        parts[0],
        detections=best_of(found, settings),
        rejected=sum(part.rejected for part in parts),
        answer=joined_facts([part.answer for part in parts if part.answer is not None]),
    )


def write_predictions(
    predictions: Iterable[Prediction],
    output: Path,
    model: Mapping[str, object] | None = None,
    ids: CocoIds = ({}, {}),
) -> None:
    """Write predictions by the output's ending: ``.parquet``, COCO results as ``.json``, else JSON lines.

    The file appears when all is written; ``model`` is as in :meth:`Prediction.to_json`, in Parquet part of
    the schema's metadata; ``ids`` are those of images and labels in COCO results.
    """
    with atomic_file(output) as path:
        if output.suffix == ".parquet":
            _write_parquet(predictions, path, model)
            return
        lines: Iterable[str] = (prediction.to_json(model) + "\n" for prediction in predictions)
        if output.suffix == ".json":
            lines = chain("[", _coco_results(predictions, ids), "\n]\n")
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)


def _coco_results(predictions: Iterable[Prediction], ids: CocoIds) -> Iterator[str]:
    """COCO's results. Images without an id are counted, and named; labels without one are left out."""
    images, labels = ids
    before = "\n"
    for number, prediction in enumerate(predictions):
        name = prediction.image
        image = {"image_id": images[name]} if name in images else {"image_id": number, "file_name": name}
        for item in prediction.detections:
            if item.desc in labels:
                x1, y1, x2, y2 = item.bbox_2d
                box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
                result = {**image, "category_id": labels[item.desc], "bbox": box, "score": item.score}
                yield before + json.dumps({**result, "source": item.source}, ensure_ascii=False)
                before = ",\n"


def _write_parquet(predictions: Iterable[Prediction], path: Path, model: Mapping[str, object] | None) -> None:
    pyarrow, parquet = import_parquet()
    text, number = pyarrow.string(), pyarrow.float64()
    fields = [("bbox_2d", pyarrow.list_(number, 4)), ("desc", text), ("score", number), ("source", text)]
    columns = [
        ("image", text),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("detections", pyarrow.list_(pyarrow.struct(fields))),
        ("rejected", pyarrow.int32()),
    ]
    schema = pyarrow.schema(columns, None if model is None else {"model": json.dumps(model)})
    remaining = (prediction.to_record() for prediction in predictions)
    with parquet.ParquetWriter(path, schema) as writer:
        while rows := list(islice(remaining, ROWS_OF_A_GROUP)):
            for row in rows:
                row["image"] = row["image"].encode("utf-8", "backslashreplace").decode()
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
