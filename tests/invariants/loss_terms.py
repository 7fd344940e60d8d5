"""What is back-propagated is the formula of docs/losses.md: terms, weights and derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from qwendet.checks.runner import NotApplicableError
from qwendet.config.schema import LossConfig
from qwendet.data.samples import Sample
from qwendet.errors import Problem
from tests.invariants.formula import (
    HEAD_TERMS,
    Predictions,
    Truth,
    detection_terms,
    text_terms,
    weighted_sum,
)
from tests.invariants.watched import Watched

# The terms are sums of up to 1e5 float32 numbers (torch adds pairwise: about 1e-6); the matching may
# also choose between equally good predictions.
TOLERANCE = 2e-5
UNKNOWN_TERM = "add it to HEAD_TERMS in tests/invariants/formula.py: CONTRIBUTING.md has the recipe"
FORMULA = "see LossManager in qwendet/model/losses.py and docs/losses.md"


def numbers(tensor: Tensor) -> npt.NDArray[np.float64]:
    """A tensor as float64 on the CPU."""
    found: npt.NDArray[np.float64] = tensor.detach().double().cpu().numpy()
    return found


def formula(watched: Watched) -> list[Problem]:
    """lm, teacher, student and the total are the formula's, in float64 from the model's own token losses."""
    share, weights = watched.share, watched.subject.bundle.config.loss
    assert share.output.tokens is not None
    nll = numbers(share.output.tokens.nll)
    if len(nll) != len(watched.is_student):
        what = (
            f"expected the losses of {len(watched.is_student)} answer tokens, the model returned {len(nll)}"
        )
        return [Problem(what, "Qwen25VLWithDetection.forward", "see test.prompt.labels")]
    found = {name: term.item() for name, term in share.losses.terms.items()}
    expected = text_terms(nll, watched.is_student)
    problems = _differences(found, expected, _why(found, expected))
    total = weighted_sum(expected | {"detection": found.get("detection", 0.0)}, weights)
    got = share.backpropagated.item() / watched.trainer.accelerator.num_processes
    problems += _differences({"total": got}, {"total": total}, "")
    return problems


def _why(found: Mapping[str, float], expected: Mapping[str, float]) -> str:
    """What a wrong number looks like, where it can be recognised."""
    swapped = {"teacher": expected["student"], "student": expected["teacher"]}
    if all(_is_near(found.get(name, 0.0), value) for name, value in swapped.items()):
        return "teacher and student are swapped"
    return "another mean, other tokens, or a term that is scaled"


def detection(watched: Watched) -> list[Problem]:
    """class, l1, giou and detection are the formula's, matched anew, with the student's boxes as targets."""
    share, config = watched.share, watched.subject.bundle.config
    head = share.output.head
    if not config.detection.enabled:
        raise NotApplicableError("detection.enabled is false: there is no head")
    if head is None:
        what = "detection.enabled is true, but the forward that is trained returns no predictions of a head"
        return [Problem(what, "Qwen25VLWithDetection.forward", "see the loader")]
    logits, boxes, valid = numbers(head.logits), numbers(head.boxes_cxcywh), head.valid.cpu().numpy()
    ends = np.cumsum(head.stage_sizes)
    stages = [
        [
            Predictions(logits[row, own][valid[row, own]], boxes[row, own][valid[row, own]])
            for own in (slice(end - size, end) for size, end in zip(head.stage_sizes, ends, strict=True))
        ]
        for row in range(len(logits))
    ]
    truths = [_truth(sample, watched.batch["label_texts"]) for sample in watched.subject.samples]
    expected = detection_terms(stages, truths, config.loss, config.detection.one_to_many)
    found = {name: term.item() for name, term in share.losses.terms.items()}
    reason = "other targets, another matching, or another mean"
    return _differences(found, expected, reason)


def _truth(sample: Sample, labels: list[str]) -> Truth:
    """The student's boxes in the unit square of the image as displayed."""
    turn = sample.student
    with Image.open(turn.root / turn.image) as stored:
        width, height = ImageOps.exif_transpose(stored).size
    objects = [item for item in turn.objects if not item.crowd]
    xyxy = np.array([item.bbox_2d for item in objects], dtype=np.float64).reshape(-1, 4)
    x1, y1, x2, y2 = (xyxy / np.array([width, height, width, height])).T
    cxcywh = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
    return Truth(cxcywh, np.array([labels.index(item.desc) for item in objects], dtype=np.int64))


def _differences(found: Mapping[str, float], expected: Mapping[str, float], why: str) -> list[Problem]:
    problems = []
    for name, wanted in expected.items():
        got = found.get(name)
        if got is None:
            problems.append(Problem(f"expected a term {name}, there is none", "LossManager", FORMULA))
        elif not _is_near(got, wanted):
            what = f"{name} is {got:.6g}, the formula gives {wanted:.6g}"
            problems.append(Problem(what + (f": {why}" if why else ""), "LossManager", FORMULA))
    return problems


def _is_near(found: float, expected: float) -> bool:
    return abs(found - expected) <= TOLERANCE * max(1.0, abs(expected))


def term_weights(weights: LossConfig) -> dict[str, tuple[str, float]]:
    """Of each term the config's keys that make its weight, and the weight."""
    own = weights.detection_loss_weight
    parts = {name: getattr(weights, f"{name}_weight") for name in HEAD_TERMS}
    return {
        name: (f"loss.{name}_loss_weight", getattr(weights, f"{name}_loss_weight"))
        for name in ("lm", "teacher", "student", "detection")
    } | {
        name: (f"loss.detection_loss_weight × loss.{name}_weight", own * part) for name, part in parts.items()
    }


def weights(watched: Watched) -> list[Problem]:
    """The derivative of what reaches ``backward``, by each term and by each token's loss, is the weight."""
    share = watched.share
    wanted = term_weights(watched.subject.bundle.config.loss)
    terms = {name: term for name, term in share.losses.terms.items() if name in wanted}
    found = dict.fromkeys(terms, 0.0)
    problems = [
        Problem(f"nothing says what the weight of the term {name} is", "LossManager", UNKNOWN_TERM)
        for name in share.losses.terms
        if name not in wanted
    ]
    if share.backpropagated.requires_grad:
        processes = watched.trainer.accelerator.num_processes
        found = {name: _derivative(share.backpropagated, term) / processes for name, term in terms.items()}
    for name, value in found.items():
        key, weight = wanted[name]
        if not abs(value - weight) <= 1e-5 * max(1.0, weight):
            cause = (
                "it is logged but never back-propagated"
                if value == 0
                else "it is counted otherwise than asked"
            )
            what = f"∂total/∂{name} is {value:.6g}, {key} is {weight:g}: {cause}"
            problems.append(Problem(what, "LossManager and compute_loss", FORMULA))
    problems += _token_problems(watched)
    return problems


def _token_problems(watched: Watched) -> list[Problem]:
    """Every token pulls with the sum of its terms' weights, each over the tokens of that term."""
    share, loss = watched.share, watched.subject.bundle.config.loss
    tokens, is_student = share.output.tokens, watched.is_student
    assert tokens is not None
    if not share.backpropagated.requires_grad:
        return [Problem("what reaches backward has no gradient at all", "compute_loss", FORMULA)]
    sums = {"teacher": tokens.teacher_sum, "student": tokens.student_sum}
    counts = {"teacher": int((~is_student).sum()), "student": int(is_student.sum())}
    of_all = loss.lm_loss_weight / max(1, len(is_student))
    problems = []
    for name, value in sums.items():
        if not counts[name]:
            continue
        found = _derivative(share.backpropagated, value) / watched.trainer.accelerator.num_processes
        expected = of_all + getattr(loss, f"{name}_loss_weight") / counts[name]
        if not abs(found - expected) <= 1e-5 * max(expected, 1e-12):
            what = f"a {name} token pulls with {found:.6g}, its weights by tokens are {expected:.6g}"
            problems.append(Problem(what, "LossManager", FORMULA))
    return problems


def _derivative(total: Tensor, value: Tensor) -> float:
    """Of a scalar by another one; 0 without a path."""
    if not value.requires_grad:
        return 0.0
    found: Sequence[Tensor | None] = torch.autograd.grad(total, [value], retain_graph=True, allow_unused=True)
    return 0.0 if found[0] is None else found[0].item()
