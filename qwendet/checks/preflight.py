"""``validate``: every check of config, loss and consistency; its parts; and the quick ones, for ``train``.

config.*  ──┐
loss.*  ────┼─► one list of results
consistency.* ┘      the model is loaded once for both
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import torch

from qwendet.checks.config.memory import run_memory_check
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import EMPTY, MEMORY, known_ids, run_config_checks
from qwendet.checks.consistency.pair import load_both
from qwendet.checks.ids import CONSISTENCY, LOSS, SERVED, all_ids, chosen
from qwendet.checks.runner import (
    NotApplicableError,
    Table,
    Verdict,
    require_known,
    run_after,
    run_checks,
)
from qwendet.checks.served.observed import Observed
from qwendet.checks.served.pictures import calibration_samples
from qwendet.checks.subject import Subject, temporary_subject
from qwendet.config.schema import Config
from qwendet.data.labels import label_chunks
from qwendet.errors import CheckpointError, ConfigError, Problem, QwendetError, Result
from qwendet.files import find_folder
from qwendet.inference.chat_server import ChatServer
from qwendet.inference.inputs import collect_samples
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle

logger = logging.getLogger("qwendet")

Found = tuple[list[Result], list[Table]]
QUICK = ("loss.build", "loss.gradients", "loss.optimizer", "loss.optimizer.moves")
"""What ``train`` runs before its first step: a forward of one sample, seven short backwards."""
MOST_OF_DATA = 8
"""Images of ``--data`` that a server is asked about."""


def run_all_checks(
    config: Config,
    how: Thoroughness,
    *,
    checkpoint: Path | None = None,
    server: str | None = None,
    only: Collection[str] = (),
    with_overfit: bool = True,
) -> Found:
    """Run every check, or those of some ids."""
    require_known(only, all_ids())
    require_checkpoint(checkpoint)  # before minutes of other checks
    of_server = [id for id in only if id in SERVED]
    if checkpoint is None and (server is not None or of_server):
        fix = "add --checkpoint DIR: what the server is meant to serve"
        raise ConfigError("a server is compared with a checkpoint, and none was given", "--server", fix)
    if server is None and of_server:
        raise ConfigError(f"{of_server[0]} asks a server", "--only", "add --server URL")
    results: list[Result] = []
    tables: list[Table] = []
    if not only or set(only) & set(known_ids()):
        found_in_config, of_config = run_config_checks(config, how)
        results += [result for result in found_in_config if not only or result.id in only]
        tables += [] if only else of_config
    if any(result.id == EMPTY and result.status == "fail" for result in results):
        return results, tables  # whatever else was asked would only say so again
    if not only or MEMORY in only:
        results += run_memory_check(config)
        if results[-1].status == "fail":  # what cannot be trained here is not downloaded
            return results, tables
    of_loss, of_consistency = ([id for id in only if id in known] for known in (LOSS, CONSISTENCY))
    found: list[Found] = []
    with temporary_subject(config) as subject:
        if of_loss or not only:
            found += [run_loss_checks(subject, only=of_loss, with_overfit=with_overfit)]
        if of_consistency or not only:
            found += [run_consistency_checks(subject, checkpoint=checkpoint, only=of_consistency)]
    if server is not None and checkpoint is not None and (of_server or not only):
        found += [run_served_checks(server, checkpoint, only=of_server)]
    for more, further in found:
        results += more
        tables += further
    return results, tables


def require_preflight(bundle: Bundle) -> None:
    """Run what ``train.preflight`` asks for on the model that is about to be trained."""
    config = bundle.config
    if config.train.preflight == "off":
        logger.warning("train.preflight is off: nobody has checked that this model trains as it is served")
        return
    with torch.random.fork_rng(), temporary_subject(config, bundle) as subject:
        if config.train.preflight == "quick":
            results, _ = run_loss_checks(subject, only=QUICK)
        else:
            results, _ = run_loss_checks(subject, with_overfit=False)
            results += run_consistency_checks(subject)[0]
    failed = [result for result in results if result.status == "fail"]
    if failed:
        problems = [Problem(result.what, result.where, result.fix, result.id) for result in failed]
        raise PreflightError.of(problems)
    passed = sum(result.status == "pass" for result in results)
    logger.info("preflight (%s): %d checks passed", config.train.preflight, passed)
    for result in results:
        if result.status == "skip" and not result.id.startswith("consistency.checkpoint."):
            logger.info("preflight: %s was skipped: %s", result.id, result.what)


class PreflightError(QwendetError):
    """A check of the model failed; training has not begun."""

    exit_code = 1


def run_loss_checks(subject: Subject, *, only: Collection[str] = (), with_overfit: bool = True) -> Found:
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
) -> Found:
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
) -> Found:
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
