"""What a check of the model saw, and the figures behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwendet.errors import Problem


@dataclass(frozen=True, slots=True)
class Table:
    """Figures that a person reads beside the results; human output only."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of the model saw.

    Attributes:
        seen: what was measured, with the tolerance it was held against; printed when the check passes.
        problems: what is wrong; none if it passes.
    """

    seen: str
    problems: tuple[Problem, ...] = ()
    tables: tuple[Table, ...] = ()


class NotApplicableError(Exception):
    """Raised by a check that has nothing to look at; its text says why. The check is skipped."""
