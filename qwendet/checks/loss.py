"""``validate-loss``: what is back-propagated is what is meant, on the config's model and first samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from qwendet.checks import (
    loss_backward,
    loss_gradients,
    loss_image,
    loss_nan,
    loss_optimizer,
    loss_overfit,
    loss_prompt,
    loss_sharing,
    loss_terms,
    loss_tokens,
)
from qwendet.checks.result import NotApplicableError, Result, Table, Verdict
from qwendet.checks.runner import run_checks
from qwendet.checks.subject import Subject
from qwendet.checks.watched import Watched
from qwendet.progress import Tracker

BUILD = "loss.build"
OVERFIT = "loss.overfit"
QUICK = (
    BUILD,
    "loss.padding",
    "loss.labels",
    "loss.prompt",
    "loss.boxes",
    "loss.gradients",
    "loss.optimizer",
)
"""What ``train`` runs before its first step: a forward of four samples, one of one, seven short backwards."""


def build(watched: Watched) -> Verdict:
    """The trainer can be built and its first samples be read."""
    bundle, encoded = watched.subject.bundle, watched.subject.encoded
    model = bundle.config.model
    tokens = ", ".join(str(len(sample.input_ids)) for sample in encoded)
    form = f"{model.dtype}, {model.attn_implementation} attention on {model.device}"
    return Verdict(f"{model.path} in {form}; samples of {tokens} tokens")


CHECKS: dict[str, Callable[[Watched], Verdict]] = {
    BUILD: build,
    "loss.padding": loss_tokens.padding,
    "loss.labels": loss_tokens.labels,
    "loss.prompt": loss_prompt.prompt,
    "loss.boxes": loss_prompt.boxes,
    "loss.image": loss_image.student_image,
    "loss.tokens": loss_tokens.token_losses,
    "loss.backward": loss_backward.token_gradients,
    "loss.formula": loss_terms.formula,
    "loss.detection": loss_terms.detection,
    "loss.weights": loss_terms.weights,
    "loss.gradients": loss_gradients.gradients,
    "loss.optimizer": loss_optimizer.optimizer,
    "loss.accumulation": loss_sharing.accumulation,
    "loss.empty": loss_sharing.empty_sets,
    "loss.nan": loss_nan.nan_stops,
    OVERFIT: loss_overfit.overfit,
}


def run_loss_checks(
    subject: Subject, tracker: Tracker, *, only: Collection[str] = (), with_overfit: bool = True
) -> tuple[list[Result], list[Table]]:
    """Run the ``loss.*`` checks.

    Args:
        subject: the config's model and samples.
        tracker: shows progress.
        only: ids to run; none runs all.
        with_overfit: train a few steps too.

    Returns:
        At least one result for each check, and the figures behind them. Where the model cannot be built, that
        check fails and the others are skipped.
    """
    watched, allowed = Watched(subject), subject.config.data.allow
    chosen = {id: check for id, check in CHECKS.items() if not only or id in only}
    if not with_overfit and OVERFIT in chosen:
        chosen[OVERFIT] = _left_out
    built, tables = run_checks({BUILD: build}, watched, allowed, tracker)
    if any(result.status == "fail" for result in built):
        skipped = [
            Result(id, "skip", f"there is no model to look at: see {BUILD}") for id in chosen if id != BUILD
        ]
        return built + skipped, tables
    others: Mapping[str, Callable[[Watched], Verdict]] = {
        id: check for id, check in chosen.items() if id != BUILD
    }
    results, tables = run_checks(others, watched, allowed, tracker)
    return (built if BUILD in chosen else []) + results, tables


def _left_out(watched: Watched) -> Verdict:
    raise NotApplicableError("left out: --no-overfit")
