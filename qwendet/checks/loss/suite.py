"""``validate-loss``: what is back-propagated is what is meant, on the config's model and first samples."""

from __future__ import annotations

from collections.abc import Callable, Collection

from qwendet.checks.loss import gradients, moves, optimizer, overfit, tokens
from qwendet.checks.result import NotApplicableError, Table, Verdict
from qwendet.checks.runner import run_after
from qwendet.checks.subject import Subject
from qwendet.errors import Result

BUILD = "loss.build"
OVERFIT = "loss.overfit"
QUICK = (
    BUILD,
    "loss.gradients",
    "loss.optimizer",
    "loss.optimizer.moves",
)
"""What ``train`` runs before its first step: a forward of one sample, seven short backwards."""


def build(subject: Subject) -> Verdict:
    """The trainer can be built and its first samples be read."""
    return Verdict(subject.in_words)


CHECKS: dict[str, Callable[[Subject], Verdict]] = {
    BUILD: build,
    "loss.tokens": tokens.token_losses,
    "loss.gradients": gradients.gradients,
    "loss.optimizer": optimizer.optimizer,
    "loss.optimizer.moves": moves.moves,
    OVERFIT: overfit.overfit,
}


def run_loss_checks(
    subject: Subject, *, only: Collection[str] = (), with_overfit: bool = True
) -> tuple[list[Result], list[Table]]:
    """Run the ``loss.*`` checks."""
    chosen = {id: check for id, check in CHECKS.items() if not only or id in only}
    if not with_overfit and OVERFIT in chosen:
        chosen[OVERFIT] = _left_out
    return run_after(BUILD, build, chosen, subject, subject.config.data.allow)


def _left_out(subject: Subject) -> Verdict:
    raise NotApplicableError("left out: --no-overfit")
