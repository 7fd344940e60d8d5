"""A number that is not finite stops training before the update: planted, and waited for.

The loop is the real one. The model in it is a stand-in of one number, so that a failing check harms nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from qwendet.checks.loss.overfit import short_trainer
from qwendet.config.schema import Config
from qwendet.encoding.collate import IGNORED, Batch, to_device
from qwendet.errors import Problem
from qwendet.loader import Bundle
from qwendet.model.detector import DetectorOutput, Qwen25VLWithDetection
from qwendet.model.losses import TokenLosses
from qwendet.training.trainer import TrainingDivergedError
from tests.invariants.watched import Watched

FIX = "see _require_finite in trainer.py; look for nan_to_num, isfinite and nanmean on the way to it"

Poison = Callable[[Tensor], Tensor]


def _nan_loss(value: Tensor) -> Tensor:
    return value * torch.nan


def _infinite_loss(value: Tensor) -> Tensor:
    return value * torch.inf


def _infinite_gradient(value: Tensor) -> Tensor:
    """The value 0 with an infinite derivative."""
    return (value - value.detach()).sqrt()


POISONS: dict[str, Poison] = {
    "a loss that is NaN": _nan_loss,
    "a loss that is infinite": _infinite_loss,
    "a finite loss whose gradient is infinite": _infinite_gradient,
}


class StandIn(nn.Module):
    """Returns the token losses of its one parameter, the first of each batch poisoned.

    Args:
        config: of the model that it stands in for.
        poison: spoils a number.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: Any, poison: Poison) -> None:
        super().__init__()
        self.config = config
        self.poison = poison
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: Batch, **kwargs: Any) -> DetectorOutput:
        """Losses of 1 for each token of an answer, but the first."""
        rows = batch["labels"][:, 1:] != IGNORED
        nll = self.weight.expand(int(rows.sum()))
        spoilt = torch.cat([self.poison(nll[:1]), nll[1:]])
        is_student = torch.ones_like(spoilt, dtype=torch.bool)
        return DetectorOutput(TokenLosses(spoilt.detach(), is_student, nll[:0].sum(), spoilt.sum()), None)


def nan_stops(watched: Watched) -> list[Problem]:
    """NaN or infinity in the loss or its gradient stops the step before the update, and names it."""
    problems = [
        Problem(f"{name} went {outcome}", "DetectionTrainer.train", FIX)
        for name, poison in POISONS.items()
        if (outcome := _outcome(watched, poison))
    ]
    problems += _forward_problems(watched)
    return problems


def _outcome(watched: Watched, poison: Poison) -> str:
    """What became of a step that must be refused; empty if it was."""
    subject = watched.subject
    stand_in: Any = StandIn(subject.bundle.detector.config, poison)
    bundle = Bundle(subject.bundle.processor, _at_a_rate(subject.bundle.config), detector=stand_in)
    trainer = short_trainer(bundle, subject.encoded[:1], 1, subject.folder / "nan")
    try:
        trainer.train()
    except TrainingDivergedError as error:
        (problem,) = error.problems
        if stand_in.weight.item() != 1.0:
            return f"into the weights before it was found: {problem.what}"
        is_named = "step 1" in problem.what and subject.samples[0].where in problem.where
        return (
            "" if is_named else f"unnamed: expected step and sample, got {problem.what!r}, {problem.where!r}"
        )
    return f"unnoticed: the step was taken, and the weight is {stand_in.weight.item():g}, was 1"


def _at_a_rate(config: Config) -> Config:
    """The stand-in's parameter belongs to the language model's group."""
    return config.model_copy(
        update={"train": config.train.model_copy(update={"language_learning_rate": 1e-3})}
    )


def _forward_problems(watched: Watched) -> list[Problem]:
    """Hidden states that are NaN make every token's loss and every logit NaN."""
    detector = watched.detector
    batch = to_device(watched.collate(watched.subject.encoded[:1]), detector.device)
    with _nan_hidden(detector), torch.no_grad():
        output = detector(batch)
    problems = []
    if output.tokens is not None and not output.tokens.nll.isnan().all():
        problems.append(Problem("hidden states that are NaN give token losses that are not", "detector", FIX))
    if output.head is not None and not output.head.logits[output.head.valid].isnan().any():
        problems.append(Problem("hidden states that are NaN give head logits that are not", "detector", FIX))
    return problems


@contextmanager
def _nan_hidden(detector: Qwen25VLWithDetection) -> Iterator[None]:
    """The language model answers NaN, without being run."""
    language_model: Any = detector.vlm.model.language_model

    def answer(*args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        return SimpleNamespace(last_hidden_state=torch.full_like(inputs_embeds, torch.nan))

    language_model.forward = answer  # shadows the class's own until the end of the block
    try:
        yield
    finally:
        del language_model.forward
