"""Bugs of the loss itself: terms, weights, means, matching, and what is not finite."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from qwendet.model import losses as losses_module
from qwendet.model.losses import LossManager, TokenLosses
from tests.planted.bug import Bug
from tests.planted.in_code import Plant


def in_total(change: Callable[[LossManager, dict[str, Tensor]], dict[str, Tensor]]) -> Plant:
    """Change the terms before they are added up; the logged ones stay as they are."""
    sound = LossManager._total

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            LossManager, "_total", lambda self, terms: sound(self, terms | change(self, terms))
        )

    return plant


def in_tokens(change: Callable[[TokenLosses], TokenLosses]) -> Plant:
    """Change the token losses before the loss manager sees them."""
    sound = LossManager.__call__

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            LossManager,
            "__call__",
            lambda self, tokens, head, targets, counts: sound(self, change(tokens), head, targets, counts),
        )

    return plant


def wrong_teacher_weight(self: LossManager, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"teacher": terms["teacher"] / self.weights.teacher_loss_weight}


def wrong_detection_weight(self: LossManager, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"detection": terms["detection"] / self.weights.detection_loss_weight}


def spoilt_sums(tokens: TokenLosses, change: Callable[[Tensor], Tensor]) -> TokenLosses:
    return replace(tokens, teacher_sum=change(tokens.teacher_sum), student_sum=change(tokens.student_sum))


def zero_where_nan(loss: Tensor) -> Tensor:
    return loss if loss.isfinite() else torch.zeros_like(loss.detach()).requires_grad_()


def teacher_and_student_swapped(plant_on: pytest.MonkeyPatch) -> None:
    sound = LossManager.__call__

    def call(self: LossManager, tokens: TokenLosses, head: Any, targets: Any, counts: Tensor) -> Any:
        other = replace(tokens, teacher_sum=tokens.student_sum, student_sum=tokens.teacher_sum)
        return sound(self, other, head, targets, counts[[1, 0, 2]])

    plant_on.setattr(LossManager, "__call__", call)


def own_count(plant_on: pytest.MonkeyPatch) -> None:
    """Divide by the micro-batch's own tokens, as a loss that returns a mean does."""
    sound = LossManager.__call__

    def call(self: LossManager, tokens: TokenLosses, head: Any, targets: Any, counts: Tensor) -> Any:
        students = tokens.is_student.sum()
        own = torch.stack([len(tokens.nll) - students, students, counts[2]])
        return sound(self, tokens, head, targets, own)

    plant_on.setattr(LossManager, "__call__", call)


def means_without_clamp(plant_on: pytest.MonkeyPatch) -> None:
    sound = Tensor.clamp

    def clamp(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_loss = sys._getframe(1).f_globals["__name__"] == losses_module.__name__
        return self if is_loss else sound(self, *args, **kwargs)

    plant_on.setattr(Tensor, "clamp", clamp)


def class_mean_over_queries(plant_on: pytest.MonkeyPatch) -> None:
    sound = losses_module.detection_terms

    def terms(head: Any, targets: Any, matches: Any, scale: Tensor) -> dict[str, Tensor]:
        found = sound(head, targets, matches, scale)
        return found | {"class": found["class"] / head.valid.sum()}

    plant_on.setattr(losses_module, "detection_terms", terms)


def term_of_ones_own(plant_on: pytest.MonkeyPatch) -> None:
    """A new term is computed, and logged with the others; adding it to the total was forgotten."""
    sound = losses_module.detection_terms

    def terms(head: Any, targets: Any, matches: Any, scale: Tensor) -> dict[str, Tensor]:
        return sound(head, targets, matches, scale) | {"area": head.boxes_cxcywh[..., 2:].prod(-1).sum()}

    plant_on.setattr(losses_module, "detection_terms", terms)


def boxes_as_corners(plant_on: pytest.MonkeyPatch) -> None:
    """Read cxcywh as xyxy in the IoU."""
    plant_on.setattr(losses_module, "cxcywh_to_xyxy", lambda boxes: boxes)


def without_matching_cost(plant_on: pytest.MonkeyPatch) -> None:
    """Match in order of the predictions."""
    sound = losses_module.match

    def match(output: Any, targets: Any, weights: Any, repeats: Any) -> Any:
        return sound(
            replace(output, logits=output.logits * 0, boxes_cxcywh=output.boxes_cxcywh * 0 + 0.5),
            targets,
            weights,
            repeats,
        )

    plant_on.setattr(losses_module, "match", match)


TERM_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "teacher loss logged, never back-propagated",
        "test.loss.weights",
        ("∂total/∂teacher is 0", "never back-propagated"),
        in_total(lambda self, terms: {"teacher": terms["teacher"].detach()}),
    ),
    Bug(
        "detection loss logged, never back-propagated",
        "test.loss.weights",
        ("∂total/∂detection is 0", "never back-propagated"),
        in_total(lambda self, terms: {"detection": terms["detection"].detach()}),
    ),
    Bug(
        "new term logged, never back-propagated",
        "test.loss.weights",
        ("nothing says what the weight of the term area is",),
        term_of_ones_own,
    ),
    Bug(
        "student tokens detached before their mean",
        "loss.gradients",
        ("student has no path to language",),
        in_tokens(lambda tokens: replace(tokens, student_sum=tokens.student_sum.detach())),
    ),
    Bug(
        "teacher weight ignored",
        "test.loss.weights",
        ("∂total/∂teacher is 1", "loss.teacher_loss_weight is 0.3"),
        in_total(wrong_teacher_weight),
    ),
    Bug(
        "detection loss unweighted",
        "test.loss.weights",
        ("∂total/∂detection is 1", "loss.detection_loss_weight is 0.5"),
        in_total(wrong_detection_weight),
        ("loss.detection_loss_weight=0.5",),
    ),
    Bug(
        "lm term added twice",
        "test.loss.weights",
        ("∂total/∂lm is 2",),
        in_total(lambda self, terms: {"lm": 2 * terms["lm"]}),
    ),
    Bug(
        "student loss with the wrong sign",
        "test.loss.weights",
        ("∂total/∂student is -1",),
        in_total(lambda self, terms: {"student": -terms["student"]}),
    ),
    Bug(
        "total of other terms than those logged",
        "test.loss.formula",
        ("total is", "the formula gives"),
        in_total(lambda self, terms: {"lm": terms["detection"]}),
    ),
    Bug(
        "teacher and student swapped in the loss",
        "test.loss.formula",
        ("teacher and student are swapped",),
        teacher_and_student_swapped,
    ),
    Bug(
        "mean over the micro-batch instead of the step",
        "test.loss.accumulation",
        ("of 4 × 1 it is",),
        own_count,
    ),
    Bug("empty means divide by 0", "test.loss.empty", ("without boxes", "is nan"), means_without_clamp),
    Bug("class loss averaged over queries", "test.loss.detection", ("class is",), class_mean_over_queries),
    Bug("boxes read as corners in the IoU", "test.loss.detection", ("giou is",), boxes_as_corners),
    Bug("matching without a cost", "test.loss.detection", ("another matching",), without_matching_cost),
    Bug(
        "NaN made 0 in the loss",
        "test.loss.nan",
        ("a loss that is NaN went unnoticed",),
        in_tokens(lambda tokens: spoilt_sums(tokens, zero_where_nan)),
    ),
]
