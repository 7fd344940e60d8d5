"""Boxes mean the same in the picture, in the answer, in the head's targets and in what inference reports.

Held against a second computation with numpy, on the first samples and on a picture drawn so that nothing
about it is symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from qwendet.boxes import paired_iou_and_giou
from qwendet.checks.consistency.inputs import PROCESSOR_FIX
from qwendet.checks.consistency.pair import pair
from qwendet.checks.runner import NotApplicableError
from qwendet.checks.subject import Subject
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.families.family import Family
from qwendet.inference.detections import Detection
from qwendet.inference.generation import GeneratedAnswer
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle
from qwendet.model.detector import DetectorOutput
from qwendet.model.head import HeadOutput
from tests.invariants.expected import answer_text
from tests.invariants.reference import ImageFacts, displayed_pixels, model_size, patch_values
from tests.invariants.runs import serving
from tests.invariants.synthetic import HEIGHT, WIDTH, answering_family, facts_of, looked_at
from tests.invariants.trace import without

MOST_OFF = 0.02
"""Pixels of the displayed image by which an edge may come back elsewhere: two decimals are written."""
PIXEL_TOLERANCE = 1e-5
"""Of normalised pixels: float32 rounds values below 4 to 2e-7, a step of one 8-bit level is 1e-2."""
SURE = 12.0
"""Logit of a class that is there; its negative where it is not."""
BOX_FIX = "scale x by width and y by height, with the size that image_grid_thw gives"


def same(subject: Subject) -> list[Problem]:
    """Inference gives the model, bit for bit, the pixels and grids that training gave it."""
    problems = []
    encoder = Predictor(pair(subject).served).encoder
    for sample, trained in looked_at(subject):
        served = encoder.encode(sample, with_answer=False)
        for name in ("pixel_values", "image_grid_thw"):
            if not torch.equal(getattr(trained, name), getattr(served, name)):
                what = f"{name} in training and at inference differ"
                problems.append(Problem(what, sample.where, PROCESSOR_FIX))
    trace = serving(subject).trace
    for name in ("pixel_values", "image_grid_thw"):
        wanted = torch.cat([getattr(item, name) for item in subject.encoded])
        given = [batch[name] for batch in trace.batches] + [trace.prompts[0].get(name)]
        if any(found is not None and not torch.equal(found.cpu(), wanted) for found in given):
            what = f"the Predictor gives the model other {name} than training"
            problems.append(Problem(what, "batch", PROCESSOR_FIX))
    return problems


def pixels(subject: Subject) -> list[Problem]:
    """Patches are the displayed picture's, red first, resized and normalised as published, token by token."""
    facts = facts_of(pair(subject).trained)
    problems: list[Problem] = []
    for sample, item in looked_at(subject):
        turns = (*sample.teachers, sample.student)
        pictures = [displayed_pixels(turn.root / turn.image) for turn in turns]
        expected = [None if picture is None else patch_values(picture, facts) for picture in pictures]
        problems += _pixel_problems(item, expected, turns, sample.where)
    return problems


def _pixel_problems(
    item: EncodedSample, expected: Sequence[Any], turns: Sequence[Turn], where: str
) -> Iterator[Problem]:
    if len(item.image_grid_thw) != len(turns):
        yield Problem(f"{len(item.image_grid_thw)} images for {len(turns)} turns", where, PROCESSOR_FIX)
        return
    counts = item.image_grid_thw.prod(dim=1).tolist()
    for own, grid, wanted, turn in zip(
        item.pixel_values.split(counts), item.image_grid_thw.tolist(), expected, turns, strict=True
    ):
        if wanted is None:
            continue
        values, (rows, columns) = wanted
        place = f"{where}, {turn.image}"
        if grid != [1, rows, columns]:
            what = f"frames, rows and columns of patches are {grid}, expected {[1, rows, columns]}"
            yield Problem(what, place, PROCESSOR_FIX)
            continue
        gap = np.abs(own.double().numpy() - values)
        if not gap.max() <= PIXEL_TOLERANCE:
            patch, _ = np.unravel_index(gap.argmax(), gap.shape)
            share = (gap > PIXEL_TOLERANCE).mean()
            what = f"{share:.0%} of the pixel values differ, at most by {gap.max():.3g}"
            yield Problem(f"{what} (tolerance {PIXEL_TOLERANCE:g})", f"{place}, patch {patch}", PROCESSOR_FIX)


def answers(subject: Subject) -> list[Problem]:
    """The answer that is learned names each box in whole units of the family's frame."""
    bundle, problems = pair(subject).trained, []
    tokenizer, facts = bundle.processor.tokenizer, facts_of(bundle)
    looked = looked_at(subject)
    for sample, item in looked:
        spans = [*item.teacher_assistant_spans, *item.student_assistant_spans]
        turns = (*sample.teachers, sample.student)
        if len(spans) != len(turns):
            problems.append(Problem(f"{len(spans)} answers to {len(turns)} turns", sample.where, BOX_FIX))
            continue
        asked = sample.student.labels or bundle.labels
        for (start, end), turn in zip(spans, turns, strict=True):
            found = tokenizer.decode(item.input_ids[start : end - 1].tolist())
            expected = _expected_answer(turn, turn.labels or asked, facts, answering_family(bundle))
            if expected is not None and found != expected:
                what = f"the answer is {found[:200]!r}, expected {expected[:200]!r}"
                problems.append(Problem(what, f"{sample.where}, {turn.image}", BOX_FIX))
    return problems


def _expected_answer(turn: Turn, labels: Sequence[str], facts: ImageFacts, family: Family) -> str | None:
    picture = displayed_pixels(turn.root / turn.image)
    if picture is None:
        return None
    size = (picture.shape[1], picture.shape[0])
    objects = [item for item in turn.objects if not item.crowd and item.desc in labels]
    boxes, names = [item.bbox_2d for item in objects], [item.desc for item in objects]
    shown = family.answer_size(model_size(*size, facts))
    return answer_text(boxes, names, size, shown, family.answer_form)


def targets(subject: Subject) -> list[Problem]:
    """The head's targets are the student's own boxes and labels, in its image's unit square."""
    bundle, problems = pair(subject).trained, []
    looked = looked_at(subject)
    batch = bundle.collator()([item for _, item in looked])
    first = 0
    for row, (sample, item) in enumerate(looked):
        objects = [found for found in sample.student.objects if not found.crowd]
        own = slice(first, first + batch["num_boxes"][row])
        first = own.stop
        width, height = _displayed_size(sample.student) or item.image_size
        wanted = [_unit_cxcywh(found, width, height) for found in objects]
        expected = np.array(wanted, dtype=np.float64).reshape(-1, 4)
        boxes = batch["target_boxes_cxcywh"][own].double().numpy()
        names = [batch["label_texts"][index] for index in batch["target_label_ids"][own]]
        if boxes.shape != expected.shape or np.abs(boxes - expected).max(initial=0) > 1e-6:
            problems.append(Problem("the head's boxes are not the student's", sample.where, BOX_FIX))
        elif names != [found.desc for found in objects]:
            what = f"the head's labels are {names[:5]}, expected {[found.desc for found in objects][:5]}"
            problems.append(Problem(what, sample.where, "number labels in the order of the label set"))
    return problems


def _displayed_size(turn: Turn) -> tuple[int, int] | None:
    picture = displayed_pixels(turn.root / turn.image)
    return None if picture is None else (picture.shape[1], picture.shape[0])


def _unit_cxcywh(found: DetectedObject, width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = found.bbox_2d
    return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height


def text_boxes(subject: Subject) -> list[Problem]:
    """The answer that training teaches, read as inference reads one, gives back the boxes."""
    both = pair(subject)
    sample, item = looked_at(subject)[-1]
    start, end = item.student_assistant_spans[0]
    text = both.trained.processor.tokenizer.decode(item.input_ids[start : end - 1].tolist())
    predictor = Predictor(_keeping_all(both.served))
    ends = tuple(range(1, len(text) + 1))
    given = GeneratedAnswer(text, ends, (0.0,) * len(text), truncated=False)
    # The model need not have said it.
    with patch("qwendet.inference.predictor.generate_answers", lambda *_: [given]):
        (prediction,) = predictor.predict([sample], "text")
    problems = _returned(prediction.detections, sample)
    if (prediction.width, prediction.height) != (WIDTH, HEIGHT):
        what = f"the image is reported as {prediction.width}×{prediction.height}, displayed {WIDTH}×{HEIGHT}"
        problems.append(Problem(what, sample.where, "apply EXIF orientation before anything else"))
    return problems


def head_boxes(subject: Subject) -> list[Problem]:
    """A head that predicts its targets is read, at inference, as the boxes of the sample."""
    both = pair(subject)
    if both.served.detector.head is None:
        raise NotApplicableError("there is no head")
    sample, item = looked_at(subject)[-1]
    bundle = _keeping_all(both.served)

    def perfect(_: nn.Module, args: Any, output: DetectorOutput) -> DetectorOutput:
        assert output.head is not None
        return replace(output, head=_as_predictions(output.head, item))

    model = bundle.detector.vlm.model
    handle = bundle.detector.register_forward_hook(perfect)
    try:
        # What the layers would say is replaced anyway: they need not be run.
        with without(model.visual, "blocks"), without(model.language_model, "layers"):
            (prediction,) = Predictor(bundle).predict([sample], "head")
    finally:
        handle.remove()
    found = [detection for detection in prediction.detections if detection.score > 0.5]
    problems = _returned(found, sample)
    return problems


def _as_predictions(head: HeadOutput, item: EncodedSample) -> HeadOutput:
    """Head output whose last stage predicts the sample's targets, surely, and nothing else."""
    logits, boxes = torch.full_like(head.logits, -SURE), head.boxes_cxcywh.clone()
    first = sum(head.stage_sizes[:-1])
    for index, (box, label) in enumerate(zip(item.boxes_cxcywh, item.label_ids, strict=True)):
        boxes[:, first + index] = box.to(boxes)
        logits[:, first + index, label] = SURE
    return replace(head, logits=logits, boxes_cxcywh=boxes)


def _keeping_all(bundle: Bundle) -> Bundle:
    infer = bundle.config.infer.model_copy(update={"score_threshold": 0.0, "max_detections": 100})
    return replace(bundle, config=bundle.config.model_copy(update={"infer": infer}))


def _returned(found: Sequence[Detection], sample: Sample) -> list[Problem]:
    """What is wrong with detections that should be the sample's own objects."""
    objects = [item for item in sample.student.objects if not item.crowd]
    if len(found) != len(objects):
        return [Problem(f"{len(objects)} boxes went in, {len(found)} came out", sample.where, BOX_FIX)]
    problems = []
    boxes = torch.tensor([detection.bbox_2d for detection in found], dtype=torch.float64)
    for item in objects:
        own = torch.tensor([item.bbox_2d], dtype=torch.float64).expand_as(boxes)
        overlap, _ = paired_iou_and_giou(boxes, own)
        best = int(overlap.argmax())
        off = (boxes[best] - own[best]).abs().max()
        if not off <= MOST_OFF:
            what = f"the box {_short(item.bbox_2d)} comes back as {_short(found[best].bbox_2d)}"
            problems.append(Problem(f"{what}, {off:.2f} pixels off", sample.where, BOX_FIX))
        elif found[best].desc != item.desc:
            what = f"the label {item.desc!r} comes back as {found[best].desc!r}"
            problems.append(Problem(what, sample.where, "keep one order of labels"))
    return problems


def _short(box: Sequence[float]) -> list[float]:
    return [round(number, 1) for number in box]
