"""How long work tells how far it is, without knowing who shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int, str], None]
"""Called with the number of finished items and a short text to show, such as ``loss 1.23``."""

Tracker = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with what is being done and the number of items; see ``qwendet.console.progress``."""

PLAIN_STEP = 0.1  # share of the work between two lines of progress without a terminal
PLAIN_SECONDS = 30.0  # … or seconds
PLAIN_LEAST_SECONDS = 2.0  # between two such lines, so that quick work prints its last one only


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """Track without showing anything."""
    yield no_advance


def no_advance(finished: int, text: str) -> None:
    """Show nothing."""


class Pace:
    """Rate and time left, counted from where the work was when it was first looked at."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._began = time.monotonic()
        self._finished_before: int | None = None

    def describe(self, finished: int) -> str:
        """For example ``2.5/s, 1:40 left``; empty while nothing is known."""
        if self._finished_before is None:
            self._finished_before = 0 if finished <= 1 else finished
        done = finished - self._finished_before
        seconds = time.monotonic() - self._began
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        left = f", {_clock((self.total - finished) / rate)} left" if self.total > finished else ""
        return shown + left


def _clock(seconds: float) -> str:
    """Seconds as ``h:mm:ss`` or ``m:ss``.

    Example:
        >>> _clock(61), _clock(3661)
        ('1:01', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainProgress:
    """Progress for a log file: a line about every tenth or 30 s, and one at the end.

    Args:
        description: what is being done.
        total: number of items; 0 if nobody knows.
        write: called with each line.
    """

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
