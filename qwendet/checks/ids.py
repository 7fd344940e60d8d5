"""The ids of all checks, in the order in which they run: known without torch, for ``--list`` and completion.

A test holds them against the suites, which own them.
"""

from __future__ import annotations

from qwendet.checks.config.suite import MEMORY, known_ids

LOSS_IDS = (
    "loss.build",
    "loss.tokens",
    "loss.gradients",
    "loss.optimizer",
    "loss.optimizer.moves",
    "loss.overfit",
)
CONSISTENCY_IDS = (
    "consistency.build.load",
    "consistency.prompt.text",
    "consistency.prompt.special_tokens",
    "consistency.images.processor",
    "consistency.compute.noise",
    "consistency.compute.served",
    "consistency.compute.attention",
    "consistency.checkpoint.files",
    "consistency.checkpoint.parameters",
    "consistency.checkpoint.dtypes",
    "consistency.checkpoint.tied",
    "consistency.checkpoint.architecture",
    "consistency.checkpoint.tokenizer",
    "consistency.checkpoint.special_tokens",
    "consistency.checkpoint.template",
    "consistency.checkpoint.processor",
    "consistency.checkpoint.generation",
    "consistency.checkpoint.settings",
)
SERVED_IDS = (
    "served.model",
    "served.template",
    "served.images",
    "served.resize",
    "served.greedy",
    "served.weights",
    "served.text",
    "served.boxes",
    "served.end",
    "served.order",
)


def all_ids() -> list[str]:
    """Ids of every check."""
    return [*known_ids(), MEMORY, *LOSS_IDS, *CONSISTENCY_IDS, *SERVED_IDS]
