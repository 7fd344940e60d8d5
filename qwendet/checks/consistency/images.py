"""``consistency.images.*``: the model sees the picture that people see, and boxes mean the same in both.

Held against a second computation with Pillow and numpy (:mod:`qwendet.checks.reference`), on the first
samples and on a picture drawn so that nothing about it is symmetric
(:mod:`qwendet.checks.consistency.synthetic`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from qwendet.boxes import paired_iou_and_giou
from qwendet.checks.consistency.pair import pair
from qwendet.checks.consistency.runs import serving
from qwendet.checks.consistency.synthetic import HEIGHT, WIDTH, synthetic_sample
from qwendet.checks.once import once
from qwendet.checks.reference import ImageFacts, answer_text, displayed_pixels, model_size, patch_values
from qwendet.checks.result import NotApplicableError, Verdict
from qwendet.checks.subject import Subject
from qwendet.checks.trace import without
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.families.family import Family
from qwendet.inference.detections import Detection
from qwendet.inference.predictor import Predictor
from qwendet.inference.token_scores import GeneratedAnswer
from qwendet.loader import Bundle
from qwendet.model.detector import DetectorOutput
from qwendet.model.head import HeadOutput

PIXEL_TOLERANCE = 1e-5
"""Of normalised pixels: float32 rounds values below 4 to 2e-7, a step of one 8-bit level is 1e-2."""
MOST_OFF = 0.02
"""Pixels of the displayed image by which an edge may come back elsewhere: two decimals are written."""
SURE = 12.0
"""Logit of a class that is there; its negative where it is not."""
PROCESSOR_FIX = "take image processor and pixel limits from the checkpoint, in training and at inference"
BOX_FIX = "scale x by width and y by height, with the size that image_grid_thw gives"


def facts_of(bundle: Bundle) -> ImageFacts:
    """How images are made: limits of the resolved config, sizes of the model, published colour statistics."""
    data, vision = bundle.config.data, bundle.detector.config.vision_config
    assert data.min_pixels is not None  # the loader records both
    assert data.max_pixels is not None
    sizes = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    family = bundle.detector.family
    return ImageFacts(data.min_pixels, data.max_pixels, *sizes, family.image_mean, family.image_std)


def published_family(bundle: Bundle) -> Family:
    """The family of the model's own config, with answers in the frame that ``data.frame`` names."""
    return bundle.detector.family.in_frame(bundle.config.data.frame)


@once
def looked_at(subject: Subject) -> list[tuple[Sample, EncodedSample, EncodedSample]]:
    """Samples as training encodes them and as the Predictor does: the first, and a drawn one."""
    both = pair(subject)
    shown = model_size(WIDTH, HEIGHT, facts_of(both.trained))
    frame = published_family(both.trained).answer_size(shown)
    drawn = synthetic_sample(subject.folder / "drawn", both.trained.labels, frame)
    samples = [*subject.samples, drawn]
    with_answers = [*subject.encoded, both.trained.encoder().encode(drawn, with_answer=True)]
    encoder = Predictor(both.served).encoder
    return [
        (sample, item, encoder.encode(sample, with_answer=False))
        for sample, item in zip(samples, with_answers, strict=True)
    ]


def processor(subject: Subject) -> Verdict:
    """Pixel limits, patch sizes and colour statistics are the same in both builds, and the model's own."""
    both, problems = pair(subject), []
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        facts, own = facts_of(both.trained), bundle.processor.image_processor
        expected: dict[str, tuple[Any, Any]] = {
            "min_pixels": (own.size["shortest_edge"], facts.min_pixels),
            "max_pixels": (own.size["longest_edge"], facts.max_pixels),
            "patch_size": (own.patch_size, facts.patch_size),
            "temporal_patch_size": (own.temporal_patch_size, facts.temporal_patch_size),
            "merge_size": (own.merge_size, facts.merge_size),
            "image_mean": (tuple(own.image_mean), facts.mean),
            "image_std": (tuple(own.image_std), facts.std),
            "rescale_factor": (own.rescale_factor, 1 / 255),
        }
        for setting, (found, wanted) in expected.items():
            if not np.allclose(found, wanted, rtol=1e-9):
                what = f"{setting} is {found}, expected {wanted}"
                problems.append(Problem(what, f"{name} image processor", PROCESSOR_FIX))
        for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            if not getattr(own, step):
                problems.append(Problem(f"{step} is off", f"{name} image processor", PROCESSOR_FIX))
    limits = facts_of(both.trained)
    seen = f"{limits.min_pixels} to {limits.max_pixels} pixels, patches of {limits.patch_size}"
    return Verdict(f"both image processors agree with the model: {seen}", tuple(problems))


def pixels(subject: Subject) -> Verdict:
    """Patches are the displayed picture's, red first, resized and normalised as published, token by token."""
    facts, compared = facts_of(pair(subject).trained), 0
    problems: list[Problem] = []
    for sample, *encodings in looked_at(subject):
        turns = (*sample.teachers, sample.student)
        pictures = [displayed_pixels(turn.root / turn.image) for turn in turns]
        expected = [None if picture is None else patch_values(picture, facts) for picture in pictures]
        compared += sum(picture is not None for picture in pictures)
        for name, item in zip(("training", "inference"), encodings, strict=True):
            problems += _pixel_problems(item, expected, turns, f"{sample.where}, {name}")
    return Verdict(f"{compared} pictures equal a second computation with Pillow and numpy", tuple(problems))


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
        else:
            gap = np.abs(own.double().numpy() - values)
            if not gap.max() <= PIXEL_TOLERANCE:
                patch, _ = np.unravel_index(gap.argmax(), gap.shape)
                share = (gap > PIXEL_TOLERANCE).mean()
                what = f"{share:.0%} of the pixel values differ, at most by {gap.max():.3g}"
                yield Problem(
                    f"{what} (tolerance {PIXEL_TOLERANCE:g})", f"{place}, patch {patch}", PROCESSOR_FIX
                )


def same(subject: Subject) -> Verdict:
    """Inference gives the model, bit for bit, the pixels and grids that training gave it."""
    problems = []
    looked = looked_at(subject)
    for sample, trained, served in looked:
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
    return Verdict(f"{len(looked)} samples have the same pixels in both builds", tuple(problems))


def answers(subject: Subject) -> Verdict:
    """The answer that is learned names each box in whole units of the family's frame."""
    bundle, problems = pair(subject).trained, []
    tokenizer, facts = bundle.processor.tokenizer, facts_of(bundle)
    looked = looked_at(subject)
    for sample, item, _ in looked:
        spans = [*item.teacher_assistant_spans, *item.student_assistant_spans]
        turns = (*sample.teachers, sample.student)
        if len(spans) != len(turns):
            problems.append(Problem(f"{len(spans)} answers to {len(turns)} turns", sample.where, BOX_FIX))
            continue
        for (start, end), turn in zip(spans, turns, strict=True):
            found = tokenizer.decode(item.input_ids[start : end - 1].tolist())
            expected = _expected_answer(turn, facts, published_family(bundle))
            if expected is not None and found != expected:
                what = f"the answer is {found[:200]!r}, expected {expected[:200]!r}"
                problems.append(Problem(what, f"{sample.where}, {turn.image}", BOX_FIX))
    return Verdict(f"the answers of {len(looked)} samples equal a second computation", tuple(problems))


def _expected_answer(turn: Turn, facts: ImageFacts, family: Family) -> str | None:
    picture = displayed_pixels(turn.root / turn.image)
    if picture is None:
        return None
    size = (picture.shape[1], picture.shape[0])
    objects = [item for item in turn.objects if not item.crowd]
    boxes, names = [item.bbox_2d for item in objects], [item.desc for item in objects]
    shown = family.answer_size(model_size(*size, facts))
    return answer_text(boxes, names, size, shown, family.answer_form)


def targets(subject: Subject) -> Verdict:
    """The head's targets are the student's own boxes and labels, in its image's unit square."""
    bundle, problems = pair(subject).trained, []
    looked = looked_at(subject)
    batch = bundle.collator()([item for _, item, _ in looked])
    first = 0
    for row, (sample, item, _) in enumerate(looked):
        objects = [found for found in sample.student.objects if not found.crowd]
        own = slice(first, first + batch["num_boxes"][row])
        first = own.stop
        width, height = _displayed_size(sample.student) or item.image_size
        wanted = [_unit_cxcywh(found, width, height) for found in objects]
        expected = np.array(wanted, dtype=np.float64).reshape(-1, 4)
        boxes = batch["target_boxes_cxcywh"][own].double().numpy()
        names = [bundle.labels[index] for index in batch["target_label_ids"][own]]
        if boxes.shape != expected.shape or np.abs(boxes - expected).max(initial=0) > 1e-6:
            problems.append(Problem("the head's boxes are not the student's", sample.where, BOX_FIX))
        elif names != [found.desc for found in objects]:
            what = f"the head's labels are {names[:5]}, expected {[found.desc for found in objects][:5]}"
            problems.append(Problem(what, sample.where, "number labels in the order of the label set"))
    return Verdict(f"{first} boxes of the head are the students' own", tuple(problems))


def _displayed_size(turn: Turn) -> tuple[int, int] | None:
    picture = displayed_pixels(turn.root / turn.image)
    return None if picture is None else (picture.shape[1], picture.shape[0])


def _unit_cxcywh(found: DetectedObject, width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = found.bbox_2d
    return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height


def text_boxes(subject: Subject) -> Verdict:
    """The answer that training teaches, read as inference reads one, gives back the boxes."""
    both = pair(subject)
    sample, item, _ = looked_at(subject)[-1]
    start, end = item.student_assistant_spans[0]
    text = both.trained.processor.tokenizer.decode(item.input_ids[start : end - 1].tolist())
    predictor = Predictor(_keeping_all(both.served))
    ends = tuple(range(1, len(text) + 1))
    given = GeneratedAnswer(text, ends, (0.0,) * len(text), truncated=False)
    predictor._answers = lambda *_: [given]  # type: ignore[method-assign]  # the model need not have said it
    (prediction,) = predictor.predict([sample], "text")
    problems = _returned(prediction.detections, sample)
    if (prediction.width, prediction.height) != (WIDTH, HEIGHT):
        what = f"the image is reported as {prediction.width}×{prediction.height}, displayed {WIDTH}×{HEIGHT}"
        problems.append(Problem(what, sample.where, "apply EXIF orientation before anything else"))
    return Verdict(f"boxes survive image → text → image to {MOST_OFF:g} pixels", tuple(problems))


def head_boxes(subject: Subject) -> Verdict:
    """A head that predicts its targets is read, at inference, as the boxes of the sample."""
    both = pair(subject)
    if both.served.detector.head is None:
        raise NotApplicableError("there is no head")
    sample, item, _ = looked_at(subject)[-1]
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
    return Verdict(f"boxes survive sample → targets → Predictor to {MOST_OFF:g} pixels", tuple(problems))


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
