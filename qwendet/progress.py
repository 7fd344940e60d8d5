"""How long work tells how far it is, without knowing who shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int, str], None]
"""Called with the number of finished items and a short text to show, such as ``loss 1.23``."""

Tracker = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with what is being done and the number of items; see ``qwendet.console.progress``."""


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
