"""What a check says: passed, failed or skipped, and what, where, how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwendet.errors import Problem

Status = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Result:
    """One finding of a check, or that it has none.

    Attributes:
        id: the check, such as ``config.boxes.inside``; several findings share it.
        status: ``skip`` says in ``what`` why; a check that could not run has failed.
        what: what was expected and what was found.
        where: file, line, key or image; empty if there is no such place.
        fix: a value or a command that mends it; empty if nothing needs mending.
        seconds: time that the check took, on its first finding.
    """

    id: str
    status: Status
    what: str
    where: str = ""
    fix: str = ""
    seconds: float = 0.0


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
        tables: figures behind it.
    """

    seen: str
    problems: tuple[Problem, ...] = ()
    tables: tuple[Table, ...] = ()


class NotApplicableError(Exception):
    """Raised by a check that has nothing to look at; its text says why. The check is skipped."""
