"""What a check says: passed, failed or skipped, and what, where, how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
