"""``validate-loss``: what is back-propagated is what is meant, on the config's model and first samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from qwendet.checks.loss import (
    backward,
    gradients,
    image,
    moves,
    nan,
    optimizer,
    overfit,
    prompt,
    sharing,
    terms,
    tokens,
)
from qwendet.checks.loss.watched import Watched
from qwendet.checks.result import NotApplicableError, Result, Table, Verdict
from qwendet.checks.runner import run_checks
from qwendet.checks.subject import Subject

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
    "loss.optimizer.moves",
)
"""What ``train`` runs before its first step: a forward of four samples, one of one, seven short backwards."""


def build(watched: Watched) -> Verdict:
    """The trainer can be built and its first samples be read."""
    bundle, encoded = watched.subject.bundle, watched.subject.encoded
    model = bundle.config.model
    lengths = ", ".join(str(len(sample.input_ids)) for sample in encoded)
    form = f"{model.dtype}, {model.attn_implementation} attention on {model.device}"
    return Verdict(f"{model.path} in {form}; samples of {lengths} tokens")


CHECKS: dict[str, Callable[[Watched], Verdict]] = {
    BUILD: build,
    "loss.padding": tokens.padding,
    "loss.labels": tokens.labels,
    "loss.prompt": prompt.prompt,
    "loss.boxes": prompt.boxes,
    "loss.image": image.student_image,
    "loss.tokens": tokens.token_losses,
    "loss.backward": backward.token_gradients,
    "loss.formula": terms.formula,
    "loss.detection": terms.detection,
    "loss.weights": terms.weights,
    "loss.gradients": gradients.gradients,
    "loss.optimizer": optimizer.optimizer,
    "loss.optimizer.moves": moves.moves,
    "loss.accumulation": sharing.accumulation,
    "loss.empty": sharing.empty_sets,
    "loss.nan": nan.nan_stops,
    OVERFIT: overfit.overfit,
}


def run_loss_checks(
    subject: Subject, *, only: Collection[str] = (), with_overfit: bool = True
) -> tuple[list[Result], list[Table]]:
    """Run the ``loss.*`` checks.

    Args:
        subject: the config's model and samples.
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
    built, tables = run_checks({BUILD: build}, watched, allowed)
    if any(result.status == "fail" for result in built):
        skipped = [
            Result(id, "skip", f"there is no model to look at: see {BUILD}") for id in chosen if id != BUILD
        ]
        return built + skipped, tables
    others: Mapping[str, Callable[[Watched], Verdict]] = {
        id: check for id, check in chosen.items() if id != BUILD
    }
    results, tables = run_checks(others, watched, allowed)
    return (built if BUILD in chosen else []) + results, tables


def _left_out(watched: Watched) -> Verdict:
    raise NotApplicableError("left out: --no-overfit")
