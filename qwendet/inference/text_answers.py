"""Text answers to detections: boxes from the frame of the answer to pixels of the displayed image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwendet.answers.diagnostics import AnswerFacts, answer_facts
from qwendet.answers.format import ParsedObject, parse_answer
from qwendet.boxes import clip_xyxy
from qwendet.config.schema import InferConfig
from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample
from qwendet.encoding.resize import model_image_size, rescale_xyxy
from qwendet.inference.detections import Detection, Prediction
from qwendet.inference.token_scores import GeneratedAnswer
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
    detections = [
        Detection(box, entry.desc, answer.score(entry.start, entry.end), "text")
        for entry in parsed.objects
        if has_area(box := _displayed(entry, size, item.image_size))
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
    """The best of each source, as many as if it answered alone; together sorted by score."""
    kept = best_of(by_head, settings) + best_of(by_text.detections, settings)
    kept.sort(key=lambda detection: -detection.score)
    width, height = item.image_size
    return Prediction(sample.student.image, width, height, tuple(kept), by_text.rejected, by_text.facts)


def best_of(detections: Sequence[Detection], settings: InferConfig) -> list[Detection]:
    """Those of one source that are kept of an image, best first."""
    best = sorted(detections, key=lambda detection: -detection.score)[: settings.max_detections]
    return [detection for detection in best if detection.score >= settings.score_threshold]


def _displayed(
    entry: ParsedObject, source: tuple[int, int], target: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A parsed box in pixels of the displayed image, cut at its edges."""
    box = torch.from_numpy(rescale_xyxy([entry.bbox_2d], source, target))
    return rounded(clip_xyxy(box, *target)[0].tolist())


def rounded(box: Sequence[float]) -> tuple[float, float, float, float]:
    """A box to two decimals, as it is written."""
    x1, y1, x2, y2 = (round(number, 2) for number in box)
    return x1, y1, x2, y2


def has_area(box: Sequence[float]) -> bool:
    """Whether a rounded xyxy box covers anything."""
    x1, y1, x2, y2 = rounded(box)
    return x2 > x1 and y2 > y1
