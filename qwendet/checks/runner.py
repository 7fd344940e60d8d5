"""Running a check so that it always ends in results: problems it found, or why it could not run."""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from qwendet.checks.result import NotApplicableError, Result, Status, Table, Verdict
from qwendet.errors import ConfigError, Problem, QwendetError
from qwendet.progress import track

logger = logging.getLogger("qwendet")

Subject = TypeVar("Subject")

MAX_SHOWN = 20
"""Problems of one check that are named; the rest is counted."""


def attempt(find: Callable[[], Iterable[Problem]]) -> list[Problem]:
    """Call a check; what it raises becomes a problem, so that the others go on.

    Example:
        >>> attempt(lambda: [Problem("bad")] if 1 / 0 else [])[0].what
        'the check could not run: ZeroDivisionError: division by zero'
    """
    try:
        return list(find())
    except NotApplicableError:
        raise
    except QwendetError as error:
        return list(error.problems)
    except Exception as error:  # the check runner: a crash is a failed check, never a passed one
        logger.debug("a check could not run", exc_info=True)
        what = f"the check could not run: {type(error).__name__}: {error}"
        return [Problem(what, fix="this is a bug: please report it, with what --debug shows")]


@dataclass
class _Few:
    """The first problems, and how many there were."""

    shown: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, problems: list[Problem]) -> None:
        self.count += len(problems)
        self.shown += problems[: MAX_SHOWN - len(self.shown)]

    def merge(self, other: _Few) -> None:
        self.count += other.count
        self.shown += other.shown[: MAX_SHOWN - len(self.shown)]


@dataclass
class Findings:
    """What one check found over all that it looked at.

    Attributes:
        id: the check's id.
        seconds: time that it took.
    """

    id: str
    seconds: float = 0.0
    _failed: _Few = field(default_factory=_Few)
    _excused: dict[str, _Few] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Problems so far that count."""
        return self._failed.count

    def collect(self, find: Callable[[], Iterable[Problem]], excuse: str = "") -> bool:
        """Run the check once more.

        Args:
            find: the check.
            excuse: why its problems do not count; empty if they do.

        Returns:
            Whether it found none.
        """
        began = time.perf_counter()
        problems = attempt(find)
        self.seconds += time.perf_counter() - began
        self.add(problems, excuse)
        return not problems

    def add(self, problems: list[Problem], excuse: str = "") -> None:
        """Take in what was found; ``excuse`` as for :meth:`collect`."""
        if problems:
            few = self._excused.setdefault(excuse, _Few()) if excuse else self._failed
            few.add(problems)

    def merge(self, other: Findings) -> None:
        """Take in what the same check found elsewhere."""
        self.seconds += other.seconds
        self._failed.merge(other._failed)
        for excuse, few in other._excused.items():
            self._excused.setdefault(excuse, _Few()).merge(few)

    def results(self, good: str, allowed: Collection[str]) -> list[Result]:
        """The problems as results; a single passed one, saying ``good``, if there are none.

        Args:
            good: what is so when the check passes.
            allowed: ids of ``data.allow``.
        """
        groups = dict(self._excused)
        if self._failed.count:
            groups["accepted by data.allow" if self.id in allowed else ""] = self._failed
        found = [result for excuse, few in groups.items() for result in self._listed(few, excuse)]
        first, *others = found or [Result(self.id, "pass", good)]
        timed = Result(first.id, first.status, first.what, first.where, first.fix, self.seconds)
        return [timed, *others]

    def _listed(self, few: _Few, excuse: str) -> list[Result]:
        prefix = f"{excuse}: " if excuse else ""
        status: Status = "pass" if excuse else "fail"
        results = [
            Result(self.id, status, prefix + problem.what, problem.where, problem.fix)
            for problem in few.shown
        ]
        if few.count > len(few.shown):
            results.append(Result(self.id, status, f"{prefix}and {few.count - len(few.shown)} more"))
        return results


def require_known(ids: Collection[str], known: Sequence[str]) -> None:
    """Refuse an id that no check has.

    Raises:
        ConfigError: naming the nearest known one.
    """
    for id in ids:
        if id not in known:
            close = difflib.get_close_matches(id, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "--list prints them"
            raise ConfigError(f"there is no check {id!r}", "--only", hint)


def run_checks(
    checks: Mapping[str, Callable[[Subject], Verdict]],
    subject: Subject,
    allowed: Collection[str],
) -> tuple[list[Result], list[Table]]:
    """Run checks of one subject, each come what may.

    Args:
        checks: by id, in the order to run them.
        subject: what they look at.
        allowed: ids of ``data.allow``.

    Returns:
        At least one result for each check, and the figures behind them.
    """
    results: list[Result] = []
    tables: list[Table] = []
    with track("checking", len(checks)) as advance:
        for number, (id, check) in enumerate(checks.items()):
            advance(number, id)
            began = time.perf_counter()
            try:
                verdict = _judge(check, subject)
            except NotApplicableError as reason:
                results.append(Result(id, "skip", str(reason), seconds=time.perf_counter() - began))
                continue
            findings = Findings(id, time.perf_counter() - began)
            findings.collect(lambda problems=verdict.problems: problems)  # type: ignore[misc]
            results += findings.results(verdict.seen, allowed)
            tables += verdict.tables
        advance(len(checks), "")
    return results, tables


def _judge(check: Callable[[Subject], Verdict], subject: Subject) -> Verdict:
    """Call a check; what it raises becomes a problem."""
    verdicts: list[Verdict] = []

    def find() -> tuple[Problem, ...]:
        verdicts.append(check(subject))
        return verdicts[0].problems

    problems = attempt(find)
    return verdicts[0] if verdicts else Verdict("", tuple(problems))
