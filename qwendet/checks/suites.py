"""The checks that run a model: ``validate-loss``, ``check-consistency`` and ``check-served``."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from qwendet.checks.consistency.pair import load_both
from qwendet.checks.ids import CONSISTENCY, LOSS, SERVED, chosen
from qwendet.checks.result import NotApplicableError, Table, Verdict
from qwendet.checks.runner import run_after, run_checks
from qwendet.checks.served.observed import Observed
from qwendet.checks.served.pictures import calibration_samples
from qwendet.checks.subject import Subject
from qwendet.data.labels import label_chunks
from qwendet.errors import CheckpointError, Result
from qwendet.files import find_folder
from qwendet.inference.chat_server import ChatServer
from qwendet.inference.inputs import collect_samples
from qwendet.inference.predictor import Predictor

QUICK = ("loss.build", "loss.gradients", "loss.optimizer", "loss.optimizer.moves")
"""What ``train`` runs before its first step: a forward of one sample, seven short backwards."""
MOST_OF_DATA = 8
"""Images of ``--data`` that a server is asked about."""


def run_loss_checks(
    subject: Subject, *, only: Collection[str] = (), with_overfit: bool = True
) -> tuple[list[Result], list[Table]]:
    """Run the ``loss.*`` checks: what is back-propagated is what is meant."""
    checks = chosen(LOSS, only)
    if not with_overfit and "loss.overfit" in checks:
        checks["loss.overfit"] = partial(_leave_out, why="left out: --no-overfit")
    return run_after("loss.build", build, checks, subject, subject.config.data.allow)


def build(subject: Subject) -> Verdict:
    """The trainer can be built and its first samples be read."""
    return Verdict(subject.in_words)


def run_consistency_checks(
    subject: Subject, *, checkpoint: Path | None = None, only: Collection[str] = ()
) -> tuple[list[Result], list[Table]]:
    """Run the ``consistency.*`` checks: the model that is trained is the model that is served."""
    require_checkpoint(checkpoint)
    checks = chosen(CONSISTENCY, only)
    for id in checks:
        if id.startswith("consistency.checkpoint."):
            without = partial(_leave_out, why="no --checkpoint was given")
            checks[id] = without if checkpoint is None else partial(checks[id], folder=checkpoint)
    return run_after("consistency.build.load", load_both, checks, subject, subject.config.data.allow)


def require_checkpoint(checkpoint: Path | None) -> None:
    """Refuse a checkpoint that was named and is not there."""
    if checkpoint is not None and not find_folder(checkpoint):
        raise CheckpointError("there is no such checkpoint", str(checkpoint), "give a checkpoint's folder")


def _leave_out(subject: Subject, why: str) -> Verdict:
    raise NotApplicableError(why)


def run_served_checks(
    url: str,
    checkpoint: Path,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    only: Collection[str] = (),
) -> tuple[list[Result], list[Table]]:
    """Run the ``served.*`` checks: a running server answers as the checkpoint does."""
    samples = [] if data is None else collect_samples([data])[:MOST_OF_DATA]
    predictor = Predictor.from_checkpoint(checkpoint, overrides=overrides, mode="text")
    bundle, server = predictor.bundle, ChatServer.find(url, predictor.bundle)
    with tempfile.TemporaryDirectory(prefix="qwendet-served-") as folder:
        drawn = calibration_samples(Path(folder), predictor.encoder.limits)
        most = bundle.config.data.labels_per_request
        asked = [label_chunks(sample, bundle.labels, most)[0] for sample in [*drawn, *samples]]
        observed = Observed(predictor, server, asked, checkpoint)
        return run_checks(chosen(SERVED, only), observed, bundle.config.data.allow)
