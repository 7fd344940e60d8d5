"""What must be so of every model, whatever a user has: properties that only a mistake of this project breaks.

A property is a function that returns what is wrong. ``test_invariants`` holds the small model of each family
against all of them, and ``tests/planted`` plants the bugs that they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from qwendet.checks.runner import NotApplicableError, attempt
from qwendet.checks.subject import Subject
from qwendet.errors import Problem, Result
from tests.invariants import (
    build,
    compute,
    drafts,
    head,
    head_gradients,
    images,
    loss_backward,
    loss_batch,
    loss_nan,
    loss_optimizer,
    loss_sharing,
    loss_terms,
    prompt,
)
from tests.invariants.watched import Watched

Property = Callable[[Subject], list[Problem]]
PREFIX = "test."


def of_step(find: Callable[[Watched], list[Problem]]) -> Property:
    """A property of a training step."""
    return lambda subject: find(Watched(subject))


INVARIANTS: dict[str, Property] = {
    "test.loss.padding": of_step(loss_batch.padding),
    "test.loss.rows": of_step(loss_batch.rows),
    "test.loss.image": of_step(loss_batch.student_image),
    "test.loss.counts": of_step(loss_batch.counts),
    "test.loss.backward": of_step(loss_backward.token_gradients),
    "test.loss.formula": of_step(loss_terms.formula),
    "test.loss.detection": of_step(loss_terms.detection),
    "test.loss.weights": of_step(loss_terms.weights),
    "test.loss.optimizer": loss_optimizer.groups,
    "test.loss.accumulation": of_step(loss_sharing.accumulation),
    "test.loss.empty": of_step(loss_sharing.empty_sets),
    "test.loss.nan": of_step(loss_nan.nan_stops),
    "test.build.classes": build.classes,
    "test.build.settings": build.settings,
    "test.build.parameters": build.parameters,
    "test.build.source": build.source,
    "test.build.dtypes": build.dtypes,
    "test.build.tied": build.tied,
    "test.prompt.prefix": prompt.prefix,
    "test.prompt.template": prompt.template,
    "test.prompt.tokenizer": prompt.tokenizer,
    "test.prompt.labels": prompt.labels,
    "test.prompt.loader": prompt.loader,
    "test.images.same": images.same,
    "test.images.pixels": images.pixels,
    "test.images.answers": images.answers,
    "test.images.targets": images.targets,
    "test.images.text_boxes": images.text_boxes,
    "test.images.head_boxes": images.head_boxes,
    "test.compute.positions": compute.positions,
    "test.compute.padding": compute.padding,
    "test.compute.causal": compute.causal,
    "test.compute.served": compute.served,
    "test.compute.generation": compute.generation,
    "test.compute.drafts": drafts.drafts,
    "test.compute.packed": compute.packed,
    "test.head.gradients": head_gradients.gradients,
    "test.head.answer": head.answer,
    "test.head.mates": head.mates,
    "test.head.order": head.order,
    "test.head.cells": head.cells,
    "test.head.asked": head.asked,
    "test.head.labels": head.labels,
    "test.head.scores": head.scores,
}


def broken(subject: Subject, only: Iterable[str] = INVARIANTS) -> list[Result]:
    """What is wrong, as failed results of the properties' names; what has nothing to look at is left out."""
    results = []
    for name in only:
        with suppress(NotApplicableError):
            problems = attempt(partial(INVARIANTS[name], subject))
            results += [Result(name, "fail", found.what, found.where, found.fix) for found in problems]
    return results
