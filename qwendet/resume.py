"""Going on with a run: which checkpoint, and which settings must be the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from qwendet.config import Config
from qwendet.errors import CheckpointError, Problem

logger = logging.getLogger("qwendet")

# What the weights depend on, and what the optimizer's stored state would override; so do learning rates.
FIXED_IN_A_RUN = (
    "model.dtype", "data.labels", "data.system_prompt", "data.request", "data.min_pixels", "data.max_pixels",
    "detection.enabled", "detection.hidden_size", "detection.num_layers", "detection.num_heads",
    "train.optimizer", "train.weight_decay",
    "model.lora", "model.lora.rank", "model.lora.alpha", "model.lora.targets", "model.lora.load_in_4bit",
)  # fmt: skip


def require_same_run(stored: Config, here: Config, checkpoint: str) -> None:
    """Refuse to resume with settings that the checkpoint fixes; say which others differ.

    Args:
        stored: the checkpoint's config.
        here: the resolved config of the run that goes on.
        checkpoint: its folder, for the messages.

    Raises:
        CheckpointError: with every setting that would change the model, or not come into effect.
    """
    before, now = _flat(stored.model_dump()), _flat(here.model_dump())
    # Told by where the checkpoint is, by the machine, and by the base's fingerprint.
    elsewhere = ("model.path", "model.device", "model.lora.base")
    differing = [key for key in before | now if before.get(key) != now.get(key) and key not in elsewhere]
    for key in differing:
        logger.info("differs from the checkpoint: %s: %s, now %s", key, before.get(key), now.get(key))
    problems = [
        Problem(
            f"{key} is {now.get(key)!r}, but the run was started with {before.get(key)!r}",
            checkpoint,
            "restore it, or start another run with the checkpoint as model.path",
        )
        for key in differing
        if key in FIXED_IN_A_RUN or key.endswith("learning_rate")
    ]
    if problems:
        raise CheckpointError.of(problems)


def _flat(dump: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in dump.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        CheckpointError: if there is none.
    """
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    if not found:
        raise CheckpointError(
            "there is no checkpoint to resume from", str(run), "start the run without --resume"
        )
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))
