"""Worker processes for work that comes piece by piece, and whose results are wanted in its order.

Unlike ``Executor.map``, which takes in all of its arguments first, only some pieces wait at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import TypeVar

Result = TypeVar("Result")
FEW_SAMPLES = 2000
"""Up to so many are checked faster than worker processes start."""
WAITING = 4
"""Pieces a worker that may wait."""


class Crew:
    """Does pieces of work by worker processes.

    Args:
        workers: how many; with 1 this process does it all.
        alone: samples that this process does first, because there may be no more of them.
    """

    def __init__(self, workers: int, *, alone: int) -> None:
        self.workers = workers
        self.alone = alone
        self.num_samples = 0
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: deque[Callable[[], None]] = deque()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def do(self, work: Callable[[], Result], merge: Callable[[Result], None], num_samples: int) -> None:
        """Do a piece of work now or later, and take its result in after those of earlier pieces.

        Args:
            work: can be pickled, as its result can.
            merge: takes the result.
            num_samples: how many samples it is about.
        """
        self.num_samples += num_samples
        if self.workers == 1 or self.num_samples <= self.alone:
            merge(work())
            return
        if self._pool is None:
            # spawn: a fork of a process that has threads (torch, a progress bar) may hang.
            self._pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))
        future: Future[Result] = self._pool.submit(work)
        self._waiting.append(lambda: merge(future.result()))
        while len(self._waiting) > WAITING * self.workers:
            self._waiting.popleft()()

    def finish(self) -> None:
        """Wait for all results."""
        while self._waiting:
            self._waiting.popleft()()
