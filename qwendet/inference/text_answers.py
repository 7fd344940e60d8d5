"""Text answers to detections: boxes from the frame of the answer to pixels of the displayed image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwendet.answers.diagnostics import AnswerFacts, answer_facts
from qwendet.answers.format import parse_answer
from qwendet.boxes import clip_xyxy
from qwendet.config.schema import InferConfig
from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample
from qwendet.encoding.resize import model_image_size, rescale_xyxy
from qwendet.inference.detections import Detection, Prediction, best_of
from qwendet.inference.generation import GeneratedAnswer
from qwendet.loader import Interface


@dataclass(frozen=True)
class FoundInText:
    """What a text answer says."""

    detections: list[Detection]
    rejected: int
    facts: AnswerFacts | None


NO_TEXT = FoundInText([], 0, None)


def answer_size(interface: Interface, item: EncodedSample) -> tuple[int, int]:
    """Width and height of the frame of the answer's coordinates."""
    processor = interface.processor
    size = model_image_size(item.image_grid_thw[-1].tolist(), processor.image_processor.patch_size)
    return processor.family.answer_size(size)


def read_answer(interface: Interface, answer: GeneratedAnswer, item: EncodedSample) -> FoundInText:
    """Read a text answer; boxes in pixels of the displayed image, cut at its edges."""
    parsed = parse_answer(answer.text)
    size = answer_size(interface, item)
    boxes = rescale_xyxy([entry.bbox_2d for entry in parsed.objects], size, item.image_size)
    displayed = clip_xyxy(torch.from_numpy(boxes), *item.image_size).tolist()
    detections = [
        Detection(rounded(box), entry.desc, answer.score(entry.start, entry.end), "text")
        for entry, box in zip(parsed.objects, displayed, strict=True)
        if has_area(box)
    ]
    facts = answer_facts(answer.text, parsed, truncated=answer.truncated, size=size, labels=item.labels)
    return FoundInText(detections, parsed.rejected + len(parsed.objects) - len(detections), facts)


def prediction_of(
    sample: Sample,
    item: EncodedSample,
    by_head: Sequence[Detection],
    by_text: FoundInText,
    settings: InferConfig,
) -> Prediction:
    """What is kept of both sources."""
    kept = best_of([*by_head, *by_text.detections], settings)
    width, height = item.image_size
    return Prediction(sample.student.image, width, height, kept, by_text.rejected, by_text.facts)


def rounded(box: Sequence[float]) -> tuple[float, float, float, float]:
    """A box to two decimals, as it is written."""
    x1, y1, x2, y2 = (round(number, 2) for number in box)
    return x1, y1, x2, y2


def has_area(box: Sequence[float]) -> bool:
    """Whether a rounded xyxy box covers anything."""
    x1, y1, x2, y2 = rounded(box)
    return x2 > x1 and y2 > y1
