"""Which bug is planted into a model of which family, and what of that the gate runs.

Every bug can be planted into every family that can have it, which ``python -m benchmarks.planted_bugs`` does.
`make test` plants it into one, by its name: each family has its share. The marker ``repeated`` stands at the
rest, which `--every-family` runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import pytest

from qwendet.families.choose import FAMILIES
from tests.planted.bug import Bug

FIRST = "qwen2_5_vl"


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
    able = bug.families or tuple(FAMILIES)
    chosen = able[zlib.crc32(bug.name.encode()) % len(able)]
    return () if family == chosen else (pytest.mark.repeated,)
