"""The head sees the student's image and what stands before its answer, in order.

Not the answer, not other samples, not a teacher's image; its classes are the labels in their order, and its
numbers are read at inference as they were learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qwendet.checks.consistency.noise import compare, noise
from qwendet.checks.consistency.pair import exact_pair, pair
from qwendet.checks.runner import NotApplicableError
from qwendet.checks.subject import Subject, as_in_training
from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.inference.detections import Detection
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import NOT_ASKED
from tests.invariants.reference import FloatArray, patch_places
from tests.invariants.runs import alone, forced, serving, training
from tests.invariants.synthetic import looked_at
from tests.invariants.trace import Look, run, without, zeroed

LEAK_FIX = "the head may see the student image's patches and the states at its tokens, of its own sample only"
ORDER_FIX = "patches come out of the vision tower in window order: put them back in rows and columns"
BOX_TOLERANCE = 0.02
"""Pixels; boxes are reported to a hundredth."""
SCORE_TOLERANCE = 1e-5
ASKED_FIX = "see Classifier in qwendet/model/head.py and asked in collate: each sample has labels of its own"
LABEL_FIX = "keep one order of labels: request, class logits and label ids"


def _require_head(subject: Subject) -> None:
    if subject.bundle.detector.head is None:
        raise NotApplicableError("there is no head")


def answer(subject: Subject) -> list[Problem]:
    """With another answer behind the request, and with none, the head predicts the same."""
    _require_head(subject)
    expected = training(subject).looks[0]
    problems: list[Problem] = []
    others = {
        "with another answer": forced(subject).looks[0],
        "without an answer": _served_look(subject),
    }
    for name, look in others.items():
        what = f"head outputs in training and {name}"
        problems += _differences(subject, look, expected, what, range(len(subject.samples)))
    return problems


def _served_look(subject: Subject) -> Look:
    looks = serving(subject).trace.looks
    if not looks:
        raise NotApplicableError("the Predictor does not use the head")
    return looks[0]


def mates(subject: Subject) -> list[Problem]:
    """Alone, unpadded, a sample gets the predictions that it gets in a batch."""
    _require_head(subject)
    expected = training(subject).looks[0]
    problems: list[Problem] = []
    for row, trace in enumerate(alone(subject)):
        what = "head outputs alone and in a batch"
        problems += _differences(subject, trace.looks[0], expected, what, [row])
    return problems


def _differences(
    subject: Subject, found: Look, expected: Look, what: str, rows: Sequence[int]
) -> Iterator[Problem]:
    """Where ``rows`` of a run differ from another: first what the head was given, then what it made of it.

    In float64 rounding flips no choice of queries: another choice is another output.
    """
    for own_row, row in enumerate(rows):
        where = subject.samples[row].where
        for quantity, part in _own_parts(found, own_row).items():
            wanted = _own_parts(expected, row)[quantity]
            kind = "hidden" if quantity in ("patches", "context") else quantity.split()[1]
            tolerance = noise(subject).tolerance(kind, wanted)
            problems = compare(part, wanted, tolerance, f"{what}: {quantity}", where, LEAK_FIX)
            yield from problems
            if problems:
                break


def _own_parts(look: Look, row: int) -> dict[str, Tensor]:
    """Inputs and outputs of one sample, padding left out."""
    mask, asked, output = look.inputs["mask"][row], look.inputs["asked"][row], look.output
    dense = output.stage_sizes[0]
    own = mask.flatten()
    valid = output.valid[row].clone()
    valid[:dense] = False
    return {
        "patches": look.inputs["patches"][row][mask],
        "context": look.inputs["context"][row][mask],
        "dense logits": output.logits[row, :dense, asked][own],
        "dense boxes": output.boxes_cxcywh[row, :dense][own],
        "final logits": output.logits[row, :, asked][valid],
        "final boxes": output.boxes_cxcywh[row][valid],
    }


def order(subject: Subject) -> list[Problem]:
    """Without their layers, towers pass on what stands at each place: the head must get it at that place.

    The vision tower then gives each patch's own embedding and the language model each token's, which a second
    computation looks up by row and column in the student's image.
    """
    _require_head(subject)
    bundle = exact_pair(subject).trained
    samples, items = zip(*looked_at(subject), strict=True)  # the drawn one is wider than a window
    with ExitStack() as stack:
        visual = bundle.detector.vlm.model.visual
        stack.enter_context(without(visual, "blocks"))
        if hasattr(
            visual, "pos_embed"
        ):  # a second computation of what is resampled to the grid would prove less
            stack.enter_context(zeroed(visual.pos_embed.weight))
        stack.enter_context(without(bundle.detector.vlm.model.language_model, "layers"))
        look = run(bundle.detector, bundle.collator()(items)).looks[0]
        problems = [
            problem
            for row, (item, sample) in enumerate(zip(items, samples, strict=True))
            for problem in _order_problems(
                look, row, item, bundle.detector, noise(subject).rounding, sample.where
            )
        ]
    return problems


@torch.no_grad()
def _order_problems(
    look: Look,
    row: int,
    item: EncodedSample,
    detector: Qwen25VLWithDetection,
    rounding: dict[str, float],
    where: str,
) -> Iterator[Problem]:
    _, rows, columns = item.image_grid_thw[-1].tolist()
    visual, mask = detector.vlm.model.visual, look.inputs["mask"][row]
    expected_mask = torch.zeros_like(mask)
    expected_mask[:rows, :columns] = True
    if not torch.equal(mask, expected_mask):
        yield Problem(f"the head's mask is not the image's {rows} × {columns} patches", where, ORDER_FIX)
        return
    places = torch.from_numpy(patch_places(rows, columns, visual.spatial_merge_size))
    pixels = item.pixel_values[-rows * columns :].to(detector.device, visual.dtype)
    with detector.computing():
        patches = visual.patch_embed(pixels)
        tokens = visual.merger(patches)
        states = detector.vlm.model.language_model.norm(tokens).repeat_interleave(
            visual.spatial_merge_size**2, dim=0
        )
    for name, wanted in (("patches", patches), ("context", states)):
        found = look.inputs[name][row][places[:, 0], places[:, 1]]
        tolerance = 8 * max(rounding["hidden"], 1e-6) * max(wanted.abs().max().item(), 1e-6)
        what = f"the head's {name} by place and in the image"
        yield from compare(found, wanted, tolerance, what, where, ORDER_FIX)


def cells(subject: Subject) -> list[Problem]:
    """A patch that regresses nothing proposes a box around itself, in the unit square of its own image."""
    _require_head(subject)
    detector, problems = exact_pair(subject).trained.detector, []
    look = training(subject).looks[0]
    assert detector.head is not None
    last = detector.head.dense_box[-1]
    kept = [parameter.detach().clone() for parameter in last.parameters()]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
        output = detector.head(*look.inputs.values())
        for parameter, values in zip(last.parameters(), kept, strict=True):
            parameter.copy_(values)
    for row, (item, sample) in enumerate(zip(subject.encoded, subject.samples, strict=True)):
        _, rows, columns = item.image_grid_thw[-1].tolist()
        height, width = look.inputs["mask"].shape[1:]
        found = output.boxes_cxcywh[row, : height * width, :2].unflatten(0, (height, width))[:rows, :columns]
        y, x = np.mgrid[:rows, :columns]
        expected = torch.from_numpy(np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=-1)).to(found)
        fix = "the box of patch (row, column) is centred at ((column + 0.5) / columns, (row + 0.5) / rows)"
        problems += compare(found, expected, 1e-5, "centres of proposals and of patches", sample.where, fix)
    return problems


def asked(subject: Subject) -> list[Problem]:
    """Beside samples that are asked about other labels, a sample gets the predictions that it gets alone."""
    _require_head(subject)
    bundle, problems = exact_pair(subject).trained, []
    detector, collator, encoder = as_in_training(bundle.detector), bundle.collator(), bundle.encoder()
    samples = [_asked_apart(sample, bundle.labels, at) for at, sample in enumerate(subject.samples)]
    items = [encoder.encode(sample, with_answer=True) for sample in samples]
    batch = collator(items)
    together = run(detector, batch).looks[0]
    for row, (item, sample) in enumerate(zip(items, samples, strict=True)):
        own = [batch["label_texts"].index(label) for label in item.labels]
        others = [label for label in range(len(batch["label_texts"])) if label not in own]
        if (together.output.logits[row][:, others] > NOT_ASKED).any():
            problems.append(Problem("labels that were not asked have a score", sample.where, ASKED_FIX))
        places = torch.tensor(own).argsort().argsort()  # among its own, in the order of the batch
        expected = _own_parts(run(detector, collator([item])).looks[0], 0)
        for quantity, part in _own_parts(together, row).items():
            kind, wanted = quantity.split()[-1], expected[quantity]
            if kind in ("logits", "boxes"):
                what = f"head outputs alone and beside samples of other labels: {quantity}"
                found = part[:, places] if kind == "logits" else part
                tolerance = noise(subject).tolerance(kind, wanted)
                problems += compare(found, wanted, tolerance, what, sample.where, ASKED_FIX)
    return problems


def _asked_apart(sample: Sample, labels: Sequence[str], at: int) -> Sample:
    """A sample that is asked about what is in it and what no other is, in an order of its own."""
    student = sample.student
    names = [*dict.fromkeys(item.desc for item in student.objects), labels[at % len(labels)], f"a thing {at}"]
    return replace(sample, student=replace(student, labels=tuple(dict.fromkeys(names))[::-1]))


def labels(subject: Subject) -> list[Problem]:
    """Class c is label c: its tokens, whatever other labels stand beside it."""
    _require_head(subject)
    both, problems = pair(subject), []
    if both.trained.labels != both.served.labels:
        what = f"{list(both.trained.labels)[:5]} in training, {list(both.served.labels)[:5]} at inference"
        problems.append(Problem(f"the label sets differ: {what}", "labels", LABEL_FIX))
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        problems += _label_text_problems(bundle, name)
    problems += _permutation_problems(subject)
    return problems


def _label_text_problems(bundle: Bundle, name: str) -> Iterator[Problem]:
    tokens, tokenizer = bundle.encoder().label_tokens(bundle.labels), bundle.processor.tokenizer
    found = [tokenizer.decode(ids) for ids in tokens.values()]
    if found != list(bundle.labels):
        what = f"the head's classes are {found[:5]}, the labels {list(bundle.labels)[:5]}"
        yield Problem(what, f"{name} collator", LABEL_FIX)


def _permutation_problems(subject: Subject) -> Iterator[Problem]:
    """Reversed labels, and a longer one beside them, must reverse the logits and change nothing else."""
    detector, inputs = exact_pair(subject).trained.detector, training(subject).looks[0].inputs
    assert detector.head is not None
    embeds, mask, asked = inputs["label_embeds"], inputs["label_mask"].bool(), inputs["asked"]
    longer = torch.cat([embeds, embeds[:, :1].expand(-1, 3, -1)], dim=1)
    longer_mask = torch.cat([mask, mask.new_zeros(len(mask), 3)], dim=1)
    with torch.no_grad():
        expected = detector.head(*inputs.values())
        seen = inputs["patches"], inputs["context"], inputs["mask"]
        found = detector.head(*seen, longer.flip(0), longer_mask.flip(0), asked.flip(1))
    dense = slice(expected.stage_sizes[0])
    own = expected.valid[:, dense]
    wanted = expected.logits[:, dense][own]
    tolerance = noise(subject).tolerance("logits", wanted)
    what = "class logits with labels reversed and padded further"
    yield from compare(found.logits[:, dense][own].flip(-1), wanted, tolerance, what, "head", LABEL_FIX)


def scores(subject: Subject) -> list[Problem]:
    """The Predictor reads the head's numbers as they were learned: sigmoid once, own boxes, own labels."""
    _require_head(subject)
    shown, bundle = serving(subject), exact_pair(subject).served
    look = _served_look(subject)
    output = look.output
    last, total = slice(-output.stage_sizes[-1], None), 0
    problems: list[Problem] = []
    for row, (prediction, item) in enumerate(zip(shown.predictions, subject.encoded, strict=True)):
        valid = output.valid[row, last]
        asked = look.inputs["asked"][row]
        logits, boxes = output.logits[row, last, asked][valid], output.boxes_cxcywh[row, last][valid]
        expected = _decoded(logits, boxes, item.image_size)
        by_head = (detection for detection in prediction.detections if detection.source == "head")
        found = [detection for detection in by_head if detection.score]  # 0 is a query beyond the image
        total += len(found)
        texts = shown.trace.batches[0]["label_texts"]
        most, labels = bundle.config.infer.max_detections, [texts[at] for at in asked.nonzero()]
        problems += _score_problems(found, *expected, labels, most, shown.samples[row].where)
    return problems


def _score_problems(
    found: Sequence[Detection],
    scores: FloatArray,
    boxes: FloatArray,
    labels: Sequence[str],
    most: int,
    where: str,
) -> Iterator[Problem]:
    """Each detection is a query's box and a class's score, and none that scores better was left out."""
    fix = "a score is the sigmoid of its class logit, once; a box is cxcywh times the displayed size"
    most = min(most, scores.size)
    best = np.sort(scores, axis=None)[::-1][:most]
    if not most or (best[-1] > 1e-6 and not found):
        return
    for detection in found:
        if detection.desc not in labels:
            yield Problem(f"the label {detection.desc!r} is not in the label set", where, LABEL_FIX)
            return
        column = scores[:, labels.index(detection.desc)]
        gap = np.abs(boxes - np.array(detection.bbox_2d)).max(axis=1)
        same_box = gap <= BOX_TOLERANCE
        if not same_box.any():
            yield Problem(f"the box {list(detection.bbox_2d)} is no query's", where, fix)
            return
        if np.abs(column[same_box] - detection.score).min() > SCORE_TOLERANCE:
            what = f"the score of {detection.desc!r} is {detection.score:.6f}"
            yield Problem(f"{what}, its logit says {column[same_box].max():.6f}", where, fix)
            return
    reported = sorted((detection.score for detection in found), reverse=True)
    has_area = ((boxes[:, 2:] - boxes[:, :2]).round(2) > 0).all(axis=1)
    due = np.sort(scores[has_area], axis=None)[::-1][: len(reported)]
    if len(reported) < min(most, scores[has_area].size) and has_area.all():
        yield Problem(f"{len(reported)} detections of {most}", where, fix)
    elif has_area.all() and np.abs(due - reported).max(initial=0) > SCORE_TOLERANCE:
        yield Problem("better detections were left out", where, "keep the best of all queries and labels")


def _decoded(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Scores ``(Q, C)`` and xyxy boxes ``(Q, 4)`` in pixels of the displayed image, in numpy."""
    numbers = logits.double().cpu().numpy()
    cx, cy, w, h = boxes.double().cpu().numpy().T
    width, height = size
    xyxy = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1) * ([width, height] * 2)
    return 1 / (1 + np.exp(-numbers)), xyxy.clip(0, [width, height, width, height])
