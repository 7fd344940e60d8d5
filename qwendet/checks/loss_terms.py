"""What is back-propagated is the formula of docs/losses.md: terms, weights and derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from qwendet.checks.loss_formula import Predictions, Truth, detection_terms, text_terms, weighted_sum
from qwendet.checks.result import NotApplicableError, Table, Verdict
from qwendet.checks.watched import Watched, numbers
from qwendet.config import LossConfig
from qwendet.data.samples import Sample
from qwendet.errors import Problem

# The terms are sums of up to 1e5 float32 numbers (torch adds pairwise: about 1e-6); the matching may
# also choose between equally good predictions.
TOLERANCE = 2e-5
FORMULA = "see LossManager in qwendet/model/losses.py and docs/losses.md"


def formula(watched: Watched) -> Verdict:
    """lm, teacher, student and the total are the formula's, in float64 from the model's own token losses."""
    share, weights = watched.share, watched.subject.bundle.config.loss
    assert share.output.tokens is not None
    nll = numbers(share.output.tokens.nll)
    if len(nll) != len(watched.is_student):
        what = (
            f"expected the losses of {len(watched.is_student)} answer tokens, the model returned {len(nll)}"
        )
        return Verdict("", (Problem(what, "Qwen25VLWithDetection.forward", "see loss.labels"),))
    found = {name: term.item() for name, term in share.losses.terms.items()}
    expected = text_terms(nll, watched.is_student)
    problems = _differences(found, expected, _why(found, expected))
    total = weighted_sum(expected | {"detection": found.get("detection", 0.0)}, weights)
    got = share.backpropagated.item() / watched.trainer.accelerator.num_processes
    problems += _differences({"total": got}, {"total": total}, "")
    values = ", ".join(f"{name} {value:.4f}" for name, value in expected.items())
    return Verdict(f"{values}, total {total:.4f}: as computed anew in float64", tuple(problems))


def _why(found: Mapping[str, float], expected: Mapping[str, float]) -> str:
    """What a wrong number looks like, where it can be recognised."""
    swapped = {"teacher": expected["student"], "student": expected["teacher"]}
    if all(_is_near(found.get(name, 0.0), value) for name, value in swapped.items()):
        return "teacher and student are swapped"
    return "another mean, other tokens, or a term that is scaled"


def detection(watched: Watched) -> Verdict:
    """class, l1, giou and detection are the formula's, matched anew, with the student's boxes as targets."""
    share, config = watched.share, watched.subject.bundle.config
    head = share.output.head
    if not config.detection.enabled:
        raise NotApplicableError("detection.enabled is false: there is no head")
    if head is None:
        what = "detection.enabled is true, but the forward that is trained returns no predictions of a head"
        return Verdict("", (Problem(what, "Qwen25VLWithDetection.forward", "see the loader"),))
    logits, boxes, valid = numbers(head.logits), numbers(head.boxes_cxcywh), head.valid.cpu().numpy()
    ends = np.cumsum(head.stage_sizes)
    stages = [
        [
            Predictions(logits[row, own][valid[row, own]], boxes[row, own][valid[row, own]])
            for own in (slice(end - size, end) for size, end in zip(head.stage_sizes, ends, strict=True))
        ]
        for row in range(len(logits))
    ]
    truths = [_truth(sample, watched.subject.bundle.labels) for sample in watched.subject.samples]
    expected = detection_terms(stages, truths, config.loss, config.detection.one_to_many)
    found = {name: term.item() for name, term in share.losses.terms.items()}
    reason = "other targets, another matching, or another mean"
    values = ", ".join(f"{name} {value:.4f}" for name, value in expected.items())
    seen = f"{values}: as matched and computed anew in float64"
    return Verdict(seen, tuple(_differences(found, expected, reason)))


def _truth(sample: Sample, labels: tuple[str, ...]) -> Truth:
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
    parts = {name: getattr(weights, f"{name}_weight") for name in ("class", "l1", "giou")}
    return {
        name: (f"loss.{name}_loss_weight", getattr(weights, f"{name}_loss_weight"))
        for name in ("lm", "teacher", "student", "detection")
    } | {
        name: (f"loss.detection_loss_weight × loss.{name}_weight", own * part) for name, part in parts.items()
    }


def weights(watched: Watched) -> Verdict:
    """The derivative of what reaches ``backward``, by each term and by each token's loss, is the weight."""
    share = watched.share
    wanted = term_weights(watched.subject.bundle.config.loss)
    terms = {name: term for name, term in share.losses.terms.items() if name in wanted}
    found = dict.fromkeys(terms, 0.0)
    problems = []
    on_graph = [name for name, term in terms.items() if term.requires_grad]
    if share.backpropagated.requires_grad and on_graph:
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            share.backpropagated, [terms[name] for name in on_graph], retain_graph=True, allow_unused=True
        )
        processes = watched.trainer.accelerator.num_processes
        for name, gradient in zip(on_graph, gradients, strict=True):
            found[name] = 0.0 if gradient is None else gradient.item() / processes
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
    rows = [(name, *wanted[name], found[name]) for name in terms]
    table = Table("∂total/∂term", ("term", "key", "weight", "derivative"), rows)
    return Verdict(
        f"∂total/∂term is the configured weight, for {len(terms)} terms", tuple(problems), (table,)
    )


def _token_problems(watched: Watched) -> list[Problem]:
    """Every token pulls with the sum of its terms' weights, each over the tokens of that term."""
    share, loss = watched.share, watched.subject.bundle.config.loss
    assert share.output.tokens is not None
    nll, is_student = share.output.tokens.nll, watched.is_student
    if not share.backpropagated.requires_grad:
        return [Problem("what reaches backward has no gradient at all", "compute_loss", FORMULA)]
    pulls: Sequence[Tensor | None] = torch.autograd.grad(
        share.backpropagated, [nll], retain_graph=True, allow_unused=True
    )
    if len(nll) != len(is_student):
        return []  # loss.formula says so
    found = np.zeros(len(nll)) if pulls[0] is None else numbers(pulls[0])
    found = found / watched.trainer.accelerator.num_processes
    students = max(1, int(is_student.sum()))
    teachers = max(1, int((~is_student).sum()))
    of_all = loss.lm_loss_weight / max(1, len(nll))
    of_student, of_teacher = loss.student_loss_weight / students, loss.teacher_loss_weight / teachers
    expected = of_all + np.where(is_student, of_student, of_teacher)
    worst = int(np.abs(found - expected).argmax())
    if np.abs(found - expected)[worst] <= 1e-5 * max(expected.max(), 1e-12):
        return []
    who = "student" if is_student[worst] else "teacher"
    what = f"a {who} token pulls with {found[worst]:.6g}, its weights over the step's tokens are"
    return [Problem(f"{what} {expected[worst]:.6g}", "LossManager", FORMULA)]
