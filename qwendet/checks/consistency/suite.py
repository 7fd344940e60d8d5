"""``check-consistency``: the model that is trained is the model that is served."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from qwendet.checks.consistency import checkpoint as checkpoints
from qwendet.checks.consistency import compute, images, prompt
from qwendet.checks.consistency.noise import noise_is_small
from qwendet.checks.consistency.pair import load_both
from qwendet.checks.result import NotApplicableError, Table, Verdict
from qwendet.checks.runner import require_known, run_after
from qwendet.checks.subject import Subject
from qwendet.errors import CheckpointError, Result
from qwendet.files import find_folder

LOAD = "consistency.build.load"
NO_CHECKPOINT = "no --checkpoint was given"

CHECKS: Mapping[str, Callable[[Subject], Verdict]] = {
    LOAD: load_both,
    "consistency.prompt.text": prompt.text,
    "consistency.prompt.special_tokens": prompt.special_tokens,
    "consistency.images.processor": images.processor,
    "consistency.compute.noise": noise_is_small,
    "consistency.compute.served": compute.served,
    "consistency.compute.attention": compute.attention,
}

CHECKPOINT_CHECKS: Mapping[str, Callable[[Subject, Path], Verdict]] = {
    "consistency.checkpoint.files": checkpoints.files,
    "consistency.checkpoint.parameters": checkpoints.parameters,
    "consistency.checkpoint.dtypes": checkpoints.dtypes,
    "consistency.checkpoint.tied": checkpoints.tied,
    "consistency.checkpoint.architecture": checkpoints.architecture,
    "consistency.checkpoint.tokenizer": checkpoints.tokenizer,
    "consistency.checkpoint.special_tokens": checkpoints.special_tokens,
    "consistency.checkpoint.template": checkpoints.template,
    "consistency.checkpoint.processor": checkpoints.processor,
    "consistency.checkpoint.generation": checkpoints.generation,
    "consistency.checkpoint.settings": checkpoints.settings,
}
IDS = (*CHECKS, *CHECKPOINT_CHECKS)


def run_consistency_checks(
    subject: Subject, *, checkpoint: Path | None = None, only: Collection[str] = ()
) -> tuple[list[Result], list[Table]]:
    """Run the ``consistency.*`` checks."""
    require_known(only, IDS)
    require_checkpoint(checkpoint)
    checks = {**CHECKS, **{id: _of(check, checkpoint) for id, check in CHECKPOINT_CHECKS.items()}}
    chosen = {id: check for id, check in checks.items() if not only or id in only}
    return run_after(LOAD, load_both, chosen, subject, subject.config.data.allow)


def require_checkpoint(checkpoint: Path | None) -> None:
    """Refuse a checkpoint that was named and is not there."""
    if checkpoint is not None and not find_folder(checkpoint):
        raise CheckpointError("there is no such checkpoint", str(checkpoint), "give a checkpoint's folder")


def _of(check: Callable[[Subject, Path], Verdict], checkpoint: Path | None) -> Callable[[Subject], Verdict]:
    def compare(subject: Subject) -> Verdict:
        if checkpoint is None:
            raise NotApplicableError(NO_CHECKPOINT)
        return check(subject, checkpoint)

    return compare
