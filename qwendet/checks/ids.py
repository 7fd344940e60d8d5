"""The ids of all checks, in the order in which they run: known without torch, for ``--list`` and completion.

A test holds them against the suites, which own them.
"""

from __future__ import annotations

from qwendet.checks.config.suite import MEMORY, known_ids

LOSS_IDS = (
    "loss.build",
    "loss.padding",
    "loss.labels",
    "loss.prompt",
    "loss.boxes",
    "loss.image",
    "loss.tokens",
    "loss.backward",
    "loss.formula",
    "loss.detection",
    "loss.weights",
    "loss.gradients",
    "loss.optimizer",
    "loss.optimizer.moves",
    "loss.accumulation",
    "loss.empty",
    "loss.nan",
    "loss.overfit",
)
CONSISTENCY_IDS = (
    "consistency.build.load",
    "consistency.build.classes",
    "consistency.build.settings",
    "consistency.build.parameters",
    "consistency.build.dtypes",
    "consistency.build.tied",
    "consistency.build.source",
    "consistency.prompt.prefix",
    "consistency.prompt.text",
    "consistency.prompt.template",
    "consistency.prompt.special_tokens",
    "consistency.prompt.tokenizer",
    "consistency.prompt.labels",
    "consistency.prompt.loader",
    "consistency.images.processor",
    "consistency.images.pixels",
    "consistency.images.same",
    "consistency.images.answers",
    "consistency.images.targets",
    "consistency.images.text_boxes",
    "consistency.images.head_boxes",
    "consistency.compute.noise",
    "consistency.compute.positions",
    "consistency.compute.padding",
    "consistency.compute.causal",
    "consistency.compute.served",
    "consistency.compute.generation",
    "consistency.compute.attention",
    "consistency.compute.packed",
    "consistency.head.answer",
    "consistency.head.mates",
    "consistency.head.order",
    "consistency.head.cells",
    "consistency.head.labels",
    "consistency.head.scores",
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
