"""What is said of a user's mistakes, and of what was checked: what, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: what was expected and what was found.
        fix: a value or a command that fixes it; empty if none is known.
        id: the check that found it, such as ``config.boxes.inside``; empty outside checks.
    """

    what: str
    where: str = ""
    fix: str = ""
    id: str = ""


def left_out_notes(problems: Sequence[Problem]) -> list[str]:
    """The note that lists what was left out."""
    lines = [f"  {problem.where}: {problem.what}" for problem in problems]
    return ["\n".join([f"Left out {len(lines)}:", *lines])] if lines else []


@dataclass(frozen=True, slots=True)
class Result:
    """One finding of a check, or that it has none.

    Attributes:
        id: the check, such as ``config.boxes.inside``; several findings share it.
        status: ``skip`` says in ``what`` why; a check that could not run has failed.
        what: what was expected and what was found.
        seconds: time that the check took, on its first finding.
    """

    id: str
    status: Status
    what: str
    where: str = ""
    fix: str = ""
    seconds: float = 0.0


class QwendetError(Exception):
    """A problem, or several, that the user can fix. Shown without a traceback."""

    exit_code = 2
    id = "error"
    """What stands for the check's id where an error is printed as a failed check."""

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

    id = "config"


class DataError(QwendetError):
    """A sample, a box, a label or an image is broken."""

    id = "data"


def expect(is_so: bool, name: str, expected: str, value: object, where: str, fix: str) -> None:
    """Refuse a value of the user's data.

    Raises:
        DataError: unless ``is_so``: what was expected, and what there is instead, cut to 80 characters.

    Example:
        >>> expect(False, "width", "pixels", "9px", "a.json", "write a number")
        Traceback (most recent call last):
        qwendet.errors.DataError: a.json: width: expected pixels, got '9px' (write a number)
    """
    if not is_so:
        raise DataError(f"{name}: expected {expected}, got {value!r:.80}".removeprefix(": "), where, fix)


class CheckpointError(QwendetError):
    """A checkpoint is incomplete, foreign, or not what the config would build."""

    id = "checkpoint"


class EnvironmentLacksError(QwendetError):
    """The machine or the installation lacks something that was asked for, such as a GPU."""

    exit_code = 3
    id = "environment"
