"""``consistency.*``: the model that is trained is the model that is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qwendet.checks import consistency_compute as compute
from qwendet.checks.noise import noise_is_small
from qwendet.checks.result import Verdict
from qwendet.checks.subject import Subject

CHECKS: Mapping[str, Callable[[Subject], Verdict]] = {
    "consistency.compute.noise": noise_is_small,
    "consistency.compute.positions": compute.positions,
    "consistency.compute.padding": compute.padding,
    "consistency.compute.causal": compute.causal,
    "consistency.compute.served": compute.served,
    "consistency.compute.generation": compute.generation,
    "consistency.compute.attention": compute.attention,
    "consistency.compute.packed": compute.packed,
}
