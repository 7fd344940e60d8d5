"""What a check says, and running it so that it always ends in results: problems, or why it could not run."""

from __future__ import annotations

import difflib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from qwendet.errors import ConfigError, Problem, QwendetError, Result, Status
from qwendet.progress import track

logger = logging.getLogger("qwendet")

Subject = TypeVar("Subject")

MAX_SHOWN = 20
"""Problems of one check that are named; the rest is counted."""


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


def attempt(find: Callable[[], Iterable[Problem]]) -> list[Problem]:
    """Call a check; what it raises becomes a problem, so that the others go on.

    Example:
        >>> attempt(lambda: [Problem("bad")] if 1 / 0 else [])[0].what
        'the check could not run: ZeroDivisionError: division by zero'
    """
    return list(judge(lambda: Verdict("", tuple(find()))).problems)


def judge(check: Callable[[], Verdict]) -> Verdict:
    """Call a check; what it raises becomes a problem of its verdict."""
    try:
        return check()
    except NotApplicableError:
        raise
    except QwendetError as error:
        return Verdict("", error.problems)
    except Exception as error:  # the check runner: a crash is a failed check, never a passed one
        logger.debug("a check could not run", exc_info=True)
        what = f"the check could not run: {type(error).__name__}: {error}"
        fix = "this is a bug: please report it, with what --debug shows"
        return Verdict("", (Problem(what, fix=fix),))


@dataclass
class Findings:
    """What one check found over all that it looked at: the first problems, and how many there were.

    Attributes:
        shown: the first problems, by why they do not count; those that do have no excuse.
    """

    id: str
    seconds: float = 0.0
    shown: dict[str, list[Problem]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def num_failed(self) -> int:
        """Problems so far that count."""
        return self.counts[""]

    def collect(self, find: Callable[[], Iterable[Problem]], excuse: str = "") -> bool:
        """Run the check once more; returns whether it found nothing."""
        began = time.perf_counter()
        problems = attempt(find)
        self.seconds += time.perf_counter() - began
        self.add(problems, excuse)
        return not problems

    def add(self, problems: list[Problem], excuse: str = "") -> None:
        """Take in what was found; ``excuse`` as for :meth:`collect`."""
        if problems:
            self.counts[excuse] += len(problems)
            shown = self.shown.setdefault(excuse, [])
            shown += problems[: MAX_SHOWN - len(shown)]

    def merge(self, other: Findings) -> None:
        """Take in what the same check found elsewhere."""
        self.seconds += other.seconds
        for excuse, problems in other.shown.items():
            self.add(problems, excuse)
            self.counts[excuse] += other.counts[excuse] - len(problems)

    def results(self, good: str, allowed: Collection[str]) -> list[Result]:
        """The problems as results; a single passed one, saying ``good``, if there are none."""
        excuses = sorted(self.shown, key=lambda excuse: not excuse)
        found = [result for excuse in excuses for result in self._listed(excuse, self.id in allowed)]
        first, *others = found or [Result(self.id, "pass", good)]
        return [replace(first, seconds=self.seconds), *others]

    def _listed(self, excuse: str, is_allowed: bool) -> list[Result]:
        problems, count = self.shown[excuse], self.counts[excuse]
        if count > len(problems):
            problems = [*problems, Problem(f"and {count - len(problems)} more")]
        reason = excuse or ("accepted by data.allow" if is_allowed else "")
        status: Status = "pass" if reason else "fail"
        prefix = f"{reason}: " if reason else ""
        return [Result(self.id, status, prefix + found.what, found.where, found.fix) for found in problems]


def require_known(ids: Collection[str], known: Sequence[str]) -> None:
    """Refuse an id that no check has."""
    problems = [unknown_id(id, known, "--only") for id in ids if id not in known]
    if problems:
        raise ConfigError.of(problems)


def unknown_id(id: str, known: Sequence[str], where: str) -> Problem:
    """What is said of an id that no check has."""
    close = difflib.get_close_matches(id, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "qwendet validate CONFIG --list prints them"
    return Problem(f"there is no check {id!r}", where, hint)


def run_check(
    id: str, check: Callable[[Subject], Verdict], subject: Subject, allowed: Collection[str]
) -> tuple[list[Result], Sequence[Table]]:
    """Run a check, come what may."""
    began = time.perf_counter()
    try:
        verdict = judge(partial(check, subject))
    except NotApplicableError as reason:
        return [Result(id, "skip", str(reason), seconds=time.perf_counter() - began)], ()
    findings = Findings(id, time.perf_counter() - began)
    findings.add(list(verdict.problems))
    return findings.results(verdict.seen, allowed), verdict.tables


def run_checks(
    checks: Mapping[str, Callable[[Subject], Verdict]], subject: Subject, allowed: Collection[str]
) -> tuple[list[Result], list[Table]]:
    """Run checks of one subject, and show which one it is."""
    results: list[Result] = []
    tables: list[Table] = []
    with track("checking", len(checks)) as advance:
        for number, (id, check) in enumerate(checks.items()):
            advance(number, id)
            found, figures = run_check(id, check, subject, allowed)
            results += found
            tables += figures
        advance(len(checks), "")
    return results, tables


def run_after(
    first: str,
    build: Callable[[Subject], Verdict],
    checks: Mapping[str, Callable[[Subject], Verdict]],
    subject: Subject,
    allowed: Collection[str],
) -> tuple[list[Result], list[Table]]:
    """Run ``build`` under the id ``first``, and the other checks unless it fails: they are skipped then."""
    built, tables = run_checks({first: build}, subject, allowed)
    if any(result.status == "fail" for result in built):
        reason = f"there is no model to look at: see {first}"
        return built + [Result(id, "skip", reason) for id in checks if id != first], tables
    others = {id: check for id, check in checks.items() if id != first}
    results, more = run_checks(others, subject, allowed)
    return (built if first in checks else []) + results, more
