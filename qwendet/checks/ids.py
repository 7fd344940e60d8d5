"""Every check of a model by its id, in the order in which they run, and where its function is.

Known without torch, for ``--list`` and completion; those of config and data are in ``config/``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pkgutil import resolve_name

from qwendet.checks.config.suite import MEMORY, known_ids
from qwendet.checks.runner import Verdict

LOSS = {
    "loss.build": "preflight:build",
    "loss.tokens": "loss.tokens:token_losses",
    "loss.gradients": "loss.gradients:gradients",
    "loss.optimizer": "loss.optimizer:optimizer",
    "loss.optimizer.moves": "loss.optimizer:moves",
    "loss.overfit": "loss.overfit:overfit",
}
CONSISTENCY = {
    "consistency.build.load": "consistency.pair:load_both",
    "consistency.prompt.text": "consistency.inputs:text",
    "consistency.prompt.special_tokens": "consistency.inputs:special_tokens",
    "consistency.images.processor": "consistency.inputs:processor",
    "consistency.compute.noise": "consistency.noise:noise_is_small",
    "consistency.compute.served": "consistency.compute:served",
    "consistency.compute.attention": "consistency.compute:attention",
    "consistency.checkpoint.files": "consistency.checkpoint:files",
    "consistency.checkpoint.parameters": "consistency.checkpoint:parameters",
    "consistency.checkpoint.dtypes": "consistency.checkpoint:dtypes",
    "consistency.checkpoint.tied": "consistency.checkpoint:tied",
    "consistency.checkpoint.architecture": "consistency.checkpoint:architecture",
    "consistency.checkpoint.tokenizer": "consistency.checkpoint:tokenizer",
    "consistency.checkpoint.special_tokens": "consistency.checkpoint:special_tokens",
    "consistency.checkpoint.template": "consistency.checkpoint:template",
    "consistency.checkpoint.processor": "consistency.checkpoint:processor",
    "consistency.checkpoint.generation": "consistency.checkpoint:generation",
    "consistency.checkpoint.settings": "consistency.checkpoint:settings",
}
SERVED = {
    "served.model": "served.prompt:model",
    "served.template": "served.prompt:template",
    "served.images": "served.prompt:images",
    "served.resize": "served.prompt:resize",
    "served.greedy": "served.answers:greedy",
    "served.weights": "served.answers:weights",
    "served.text": "served.answers:text",
    "served.boxes": "served.answers:boxes",
    "served.end": "served.answers:end",
    "served.order": "served.answers:order",
}
LOSS_IDS, CONSISTENCY_IDS, SERVED_IDS = tuple(LOSS), tuple(CONSISTENCY), tuple(SERVED)


def all_ids() -> list[str]:
    """Ids of every check."""
    return [*known_ids(), MEMORY, *LOSS, *CONSISTENCY, *SERVED]


def chosen(places: Mapping[str, str], only: Collection[str]) -> dict[str, Callable[..., Verdict]]:
    """The checks of a table above, all or some of them."""
    return {
        id: resolve_name(f"qwendet.checks.{place}") for id, place in places.items() if not only or id in only
    }
