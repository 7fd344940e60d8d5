"""What a user's mistake looks like: what happened, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: what was expected and what was found.
        where: file, line, key or image it was found at; empty if there is no such place.
        fix: a value or a command that mends it; empty if none is known.
        id: the check that found it, such as ``config.boxes.inside``; empty outside checks.
    """

    what: str
    where: str = ""
    fix: str = ""
    id: str = ""


def told_left_out(problems: Sequence[Problem]) -> list[str]:
    """The note that lists what was left out."""
    lines = [f"  {problem.where}: {problem.what}" for problem in problems]
    return ["\n".join([f"Left out {len(lines)}:", *lines])] if lines else []


class QwendetError(Exception):
    """A problem, or several, that the user can mend. Shown without a traceback."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(what, where, fix),)
        super().__init__(what, where, fix)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> QwendetError:
        """Build one error from all the problems found, at least one."""
        first = problems[0]
        error = cls(first.what, first.where, first.fix)
        error.problems = tuple(problems)
        return error

    def __str__(self) -> str:
        return "\n".join(
            ": ".join(part for part in (problem.where, problem.what) if part)
            + (f" ({problem.fix})" if problem.fix else "")
            for problem in self.problems
        )


class ConfigError(QwendetError):
    """The config or the command line cannot be used."""


class DataError(QwendetError):
    """A sample, a box, a label or an image is broken."""


class CheckpointError(QwendetError):
    """A checkpoint is incomplete, foreign, or not what the config would build."""


class EnvironmentLacksError(QwendetError):
    """The machine or the installation lacks something that was asked for, such as a GPU."""

    exit_code = 3
