"""How long work tells how far it is, without knowing who shows it, or handing it on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta

Advance = Callable[[int, str], None]
"""Called with the number of finished items and a short text to show, such as ``loss 1.23``."""

Tracker = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows work: called with what is being done and the number of items, as ``console.progress`` is."""

PLAIN_STEP = 0.1  # share of the work between two lines of progress without a terminal
PLAIN_SECONDS = 30.0  # … or seconds
PLAIN_LEAST_SECONDS = 2.0  # between two such lines, so that quick work prints its last one only


def no_advance(finished: int, text: str) -> None:
    """Show nothing."""


_tracker: ContextVar[Tracker] = ContextVar(
    "tracker", default=lambda description, total: nullcontext(no_advance)
)


def track(description: str, total: int) -> AbstractContextManager[Advance]:
    """Begin work of ``total`` items, 0 if nobody knows; shown by whom :func:`shown_by` names, else by nobody.

    What the context gives is called with the number of finished items and a short text.

    Example:
        >>> with track("reading", 2) as advance:
        ...     advance(1, "a.jpg")
    """
    return _tracker.get()(description, total)


@contextmanager
def shown_by(tracker: Tracker) -> Iterator[None]:
    """Have all work until the block ends shown.

    Example:
        >>> from contextlib import nullcontext
        >>> def shout(description, total):
        ...     print(f"{description} {total} files")
        ...     return nullcontext(lambda finished, text: print(finished, text))
        >>> with shown_by(shout), track("reading", 2) as advance:
        ...     advance(1, "a.jpg")
        reading 2 files
        1 a.jpg
    """
    token = _tracker.set(tracker)
    try:
        yield
    finally:
        _tracker.reset(token)


class Pace:
    """Rate and time left, counted from where the work was when it was first looked at."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._began = time.monotonic()
        self._finished_before: int | None = None

    def describe(self, finished: int) -> str:
        """For example ``2.5/s, 0:01:40 left``; empty while nothing is known."""
        if self._finished_before is None:
            self._finished_before = 0 if finished <= 1 else finished
        done = finished - self._finished_before
        seconds = time.monotonic() - self._began
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        if self.total <= finished:
            return shown
        return f"{shown}, {timedelta(seconds=round((self.total - finished) / rate))} left"


class PlainProgress:
    """Progress for a log file: a line about every tenth or 30 s, and one at the end."""

    def __init__(self, description: str, total: int, write: Callable[[str], None]) -> None:
        self.description = description
        self.total = total
        self.write = write
        self._pace = Pace(total)
        self._shown_at = time.monotonic()
        self._shown = 0

    def __call__(self, finished: int, text: str) -> None:
        """Write a line if it is time for one; see :data:`Advance`."""
        pace = self._pace.describe(finished)
        waited = time.monotonic() - self._shown_at
        is_step = finished - self._shown >= PLAIN_STEP * self.total and waited >= PLAIN_LEAST_SECONDS
        is_end = finished == self.total != self._shown
        if is_step or is_end or waited >= PLAIN_SECONDS:
            self._shown, self._shown_at = finished, time.monotonic()
            count = f"{finished}/{self.total}" if self.total else str(finished)
            parts = ", ".join(part for part in (count, pace, text) if part)
            self.write(f"{self.description}: {parts}")
