"""Questions of many clients: prepared by a few threads, answered in batches by one, the model's.

    ask ─► prepare, at most three batches ahead ─► ready ─► answer, as soon as the model is free

What is ready then and has the settings of the oldest is the next batch, of those nearest to it in length.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from qwendet.serve.answers import Answerer, Chat, Detect, Question
from qwendet.serve.refusals import RefusedError

BATCHES_AHEAD = 3
PREPARING_THREADS = min(4, os.cpu_count() or 1)


@dataclass(eq=False)
class _Job:
    settings: Detect | Chat
    answer: asyncio.Future[Any]
    prepared: Any = field(default=None, init=False)


class Batcher:
    """A bounded queue, made in a running event loop; ``note_batch`` is called with the size of each batch."""

    def __init__(
        self, answerer: Answerer, batch_size: int, most_waiting: int, note_batch: Callable[[int], object]
    ) -> None:
        self._answerer = answerer
        self._batch_size, self._most_waiting, self._note_batch = batch_size, most_waiting, note_batch
        self._waiting: set[_Job] = set()
        self._ready: dict[_Job, None] = {}  # the oldest first
        self._arrived = asyncio.Event()
        self._prefetcher = asyncio.Semaphore(BATCHES_AHEAD * batch_size)
        self._preparing = ThreadPoolExecutor(PREPARING_THREADS, "prepare")
        self._answering = ThreadPoolExecutor(1, "model")
        self._task = asyncio.create_task(self._work())

    @property
    def waiting(self) -> int:
        """Questions that no batch has taken yet."""
        return len(self._waiting)

    async def ask_all(self, settings: Detect | Chat, questions: Sequence[Question]) -> list[Any]:
        """The answers; whoever stops waiting for them leaves the queue."""
        return list(await asyncio.gather(*(self.ask(settings, question) for question in questions)))

    async def ask(self, settings: Detect | Chat, question: Question) -> Any:
        """The answer; whoever stops waiting for it leaves the queue."""
        if self.waiting >= self._most_waiting:
            what = f"{self.waiting} images wait already, and no more may"
            fix = "try again in a moment, or start the server with a longer --queue"
            raise RefusedError(503, what, "queue", fix)
        loop = asyncio.get_running_loop()
        job = _Job(settings, loop.create_future())
        self._waiting.add(job)
        try:
            async with self._prefetcher:
                job.prepared = await loop.run_in_executor(
                    self._preparing, self._answerer.prepare, settings, question
                )
                self._ready[job] = None
                self._arrived.set()
                return await job.answer
        finally:
            self._waiting.discard(job)
            self._ready.pop(job, None)

    async def stop(self) -> None:
        """End the threads when the batch is done."""
        self._task.cancel()
        await asyncio.to_thread(self._answering.shutdown)
        self._preparing.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while await self._arrived.wait():
            if not (batch := self._take()):  # everybody has left
                continue
            self._note_batch(len(batch))
            prepared = [job.prepared for job in batch]
            running = loop.run_in_executor(
                self._answering, self._answerer.answer, batch[0].settings, prepared
            )
            await asyncio.wait([running])
            error = running.exception()
            for job, answer in zip(batch, batch if error else running.result(), strict=True):
                if job.answer.done():  # its client has gone
                    continue
                if error is None:
                    job.answer.set_result(answer)
                else:
                    job.answer.set_exception(error)

    def _take(self) -> list[_Job]:
        oldest = next(iter(self._ready), None)
        alike = [job for job in self._ready if oldest and job.settings == oldest.settings]
        lengths = {job: self._answerer.length(job.prepared) for job in alike}
        batch = sorted(alike, key=lambda job: abs(lengths[job] - lengths[alike[0]]))[: self._batch_size]
        for job in batch:
            self._waiting.discard(job)
            del self._ready[job]
        if not self._ready:
            self._arrived.clear()
        return batch
