"""Which evaluation was the best, and what their course tells: read off the history that checkpoints keep.

    rows of trainer_state.json ─► (step, value) of each evaluation ─► the best? a gain? falling?

Nothing else is remembered, so a run that goes on decides as the whole run would have. transformers' own
``EarlyStoppingCallback`` and ``load_best_model_at_end`` are not used: they load with ``strict=False``, read
names that begin with ``eval_`` alone, and forget their patience when a run goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from qwendet.config.schema import Config, EarlyStoppingConfig
from qwendet.files import find_folder

logger = logging.getLogger("qwendet")

LOGGED = "validation/"
"""Before the names of metrics in logged rows."""
FOLDER, RECORD = "best", "best.json"
FALLS = 3
"""Evaluations in a row that must fall before it is said."""

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Best:
    """The evaluation whose model is kept."""

    step: int
    metric: str
    value: float

    def write(self, folder: Path) -> None:
        """Put it beside the model that it tells of."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def find_best(run: Path) -> Best | None:
    """What is kept in ``best/`` of a run; ``None`` if nothing is."""
    if not find_folder(run / FOLDER):
        return None
    try:
        return Best(**json.loads((run / FOLDER / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read (%s): evaluate the checkpoint anew", run / FOLDER / RECORD, error)
        return None


def evaluations(history: History, metric: str) -> list[Best]:
    """The evaluations during training, oldest first; what is measured before the first step is none."""
    name = LOGGED + metric
    return [Best(int(row["step"]), metric, row[name]) for row in history if name in row and row["step"]]


def is_best(seen: Sequence[Best]) -> bool:
    """Whether the last evaluation is better than all before it.

    Example:
        >>> is_best([Best(1, "head/AP", 0.2), Best(2, "head/AP", 0.2)])
        False
    """
    return all(earlier.value < seen[-1].value for earlier in seen[:-1])


def is_over(seen: Sequence[Best], settings: EarlyStoppingConfig | None) -> bool:
    """Whether ``train.early_stopping`` ends the run after the last evaluation.

    Example:
        >>> seen = [Best(step, "head/AP", value) for step, value in ((1, 0.2), (2, 0.21), (3, 0.22))]
        >>> (
        ...     is_over(seen, EarlyStoppingConfig(patience=2)),
        ...     is_over(seen, EarlyStoppingConfig(patience=2, min_gain=0.05)),
        ... )
        (False, True)
    """
    if settings is None:
        return False
    gained, without = float("-inf"), 0
    for evaluation in seen:
        without += 1
        if evaluation.value > gained + settings.min_gain:
            gained, without = evaluation.value, 0
    return without >= settings.patience


def falling(seen: Sequence[Best]) -> str:
    """Say that the metric fell for the third time in a row; else nothing."""
    falls = [after.value < before.value for before, after in pairwise(seen)]
    if falls[-FALLS:] != [True] * FALLS or falls[-FALLS - 1 : -FALLS] == [True]:
        return ""
    values = ", ".join(f"{evaluation.value:.4f}" for evaluation in seen[-FALLS - 1 :])
    return (
        f"validation {seen[-1].metric} has fallen {FALLS} times in a row ({values}): the model may be"
        " learning its training samples by heart; train.early_stopping would end such a run, more samples or"
        " data.augment would help it"
    )


def judge(history: History, step: int, config: Config) -> tuple[Best | None, bool, list[str]]:
    """Judge the evaluation after ``step`` steps by those before it.

    Returns:
        The evaluation, if its model is to be kept; whether ``train.early_stopping`` ends the run; warnings.
    """
    metric, settings = config.best_metric(), config.train.early_stopping
    seen = evaluations(history, metric)
    if not seen or seen[-1].step < step:
        return None, False, [f"no best model is kept: {metric} has nothing to measure in data.val"]
    warnings, ends = [said] if (said := falling(seen)) else [], is_over(seen, settings)
    if ends and settings is not None:
        warnings.append(
            f"train.early_stopping ends the run after step {step}: {metric} has not risen by more than"
            f" {settings.min_gain:g} in {settings.patience} evaluations"
        )
    return seen[-1] if is_best(seen) else None, ends, warnings
