"""Which bug is planted into a model of which family, and what of that the gate runs.

Every bug is planted into every family that can have it. `make test` does so for those of prompt, boxes,
positions and weights; the others it plants into one family, and the marker ``repeated`` stands at the rest,
which `--every-family` runs (``python -m benchmarks.planted_bugs``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from qwendet.families.choose import FAMILIES
from tests.planted.bug import Bug

FIRST = "qwen2_5_vl"
IN_EVERY_FAMILY = (
    "consistency.prompt.", "consistency.checkpoint.template", "consistency.checkpoint.tokenizer",
    "consistency.checkpoint.special_tokens", "loss.prompt", "loss.labels",  # prompt
    "consistency.images.answers", "consistency.images.targets", "consistency.images.text_boxes",
    "consistency.images.head_boxes", "loss.boxes",  # boxes
    "consistency.compute.positions", "loss.padding",  # positions
    "consistency.build.", "consistency.checkpoint.parameters", "consistency.checkpoint.dtypes",
    "consistency.checkpoint.tied", "loss.optimizer",  # weights
)  # fmt: skip
"""Beginnings of the ids of checks whose bugs `make test` plants into every family."""


def in_families(bugs: Iterable[Bug[Any]]) -> list[Any]:
    """Each bug with each family that can have it, as parameters ``bug, family`` of a test."""
    return [
        pytest.param(bug, family, id=f"{bug.name.replace(' ', '-')}-{family}", marks=_marks(bug, family))
        for bug in bugs
        for family in bug.families or FAMILIES
    ]


def families(every: bool = True) -> list[Any]:
    """Each family, as the parameter ``family`` of a test; all but the first are repeated if not ``every``."""
    repeated = () if every else pytest.mark.repeated
    return [pytest.param(name, marks=() if name == FIRST else repeated) for name in FAMILIES]


def _marks(bug: Bug[Any], family: str) -> tuple[pytest.MarkDecorator, ...]:
    first = bug.families[0] if bug.families else FIRST
    in_gate = family == first or bug.check.startswith(IN_EVERY_FAMILY)
    return () if in_gate else (pytest.mark.repeated,)
