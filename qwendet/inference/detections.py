"""What was found in an image, and the file that predictions are written to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qwendet.answers.diagnostics import AnswerFacts, joined_facts
from qwendet.files import atomic_file

Source = Literal["head", "text"]


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
        """One line of the output file.

        Args:
            model: who trained what predicted, and how it was asked, where no manifest tells it.
        """
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


def joined(parts: Sequence[Prediction], most: int, *, head_of_first: bool) -> Prediction:
    """One prediction of several of an image, each about other labels.

    Args:
        parts: at least one.
        most: detections of each source.
        head_of_first: the head scored all labels in the first; else each part has its own.
    """
    if len(parts) == 1:
        return parts[0]
    kept: list[Detection] = []
    for source in ("head", "text"):
        shown = parts[:1] if source == "head" and head_of_first else parts
        found = [item for part in shown for item in part.detections if item.source == source]
        kept += sorted(found, key=lambda item: -item.score)[:most]
    kept.sort(key=lambda item: -item.score)
    answers = [part.answer for part in parts if part.answer is not None]
    rejected = sum(part.rejected for part in parts)
    answer = joined_facts(answers) if answers else None
    return replace(parts[0], detections=tuple(kept), rejected=rejected, answer=answer)


def write_predictions(
    predictions: Iterable[Prediction], output: Path, model: Mapping[str, object] | None = None
) -> None:
    """Write predictions, one JSON object a line; ``model`` as in :meth:`Prediction.to_json`."""
    with atomic_file(output) as path, path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(prediction.to_json(model) + "\n" for prediction in predictions)
