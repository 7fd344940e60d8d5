"""Questions of many clients, answered in batches by one thread.

What waits at the same time and has the same settings is one batch; the oldest question goes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qwendet.errors import QwendetError
from qwendet.serve.refusals import RefusedError

Answer = Callable[[Any, Sequence[Any]], Sequence[Any]]
TOGETHER_SECONDS = 0.005
"""How long a question waits for others that arrive together with it."""


@dataclass(frozen=True, eq=False)
class _Job:
    settings: Hashable
    question: Any
    answer: asyncio.Future[Any]


class Batcher:
    """A bounded queue in front of one thread; made and used in a running event loop.

    Args:
        answer: called in the thread with settings and questions; returns an answer for each.
        batch_size: most questions of a call.
        most_waiting: more than these are refused.
        note_batch: told the size of each batch.
    """

    def __init__(
        self, answer: Answer, batch_size: int, most_waiting: int, note_batch: Callable[[int], object]
    ) -> None:
        self._answer = answer
        self._batch_size = batch_size
        self._most_waiting = most_waiting
        self._note_batch = note_batch
        self._waiting: dict[_Job, None] = {}  # in order of arrival
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._task = asyncio.create_task(self._work())

    @property
    def waiting(self) -> int:
        """Questions that no batch has taken yet."""
        return len(self._waiting)

    async def ask_all(self, settings: Hashable, questions: Sequence[Any]) -> list[Any]:
        """The answers to several questions; raises as :meth:`ask`."""
        return list(await asyncio.gather(*(self.ask(settings, question) for question in questions)))

    async def ask(self, settings: Hashable, question: Any) -> Any:
        """The answer; whoever stops waiting for it leaves the queue.

        Raises:
            RefusedError: if the queue is full.
            QwendetError: for a question that cannot be answered.
        """
        if self.waiting >= self._most_waiting:
            what = f"{self.waiting} images wait already, and no more may"
            fix = "try again in a moment, or start the server with a longer --queue"
            raise RefusedError(503, what, "queue", fix)
        job = _Job(settings, question, asyncio.get_running_loop().create_future())
        self._waiting[job] = None
        self._arrived.set()
        try:
            return await job.answer
        finally:
            self._waiting.pop(job, None)

    async def stop(self) -> None:
        """End the thread when its batch is done."""
        self._task.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _work(self) -> None:
        while await self._arrived.wait():
            if len(self._waiting) < self._batch_size:
                await asyncio.sleep(TOGETHER_SECONDS)
            batch = self._take()
            if batch:
                self._note_batch(len(batch))
                questions = [job.question for job in batch]
                running = asyncio.wrap_future(
                    self._thread.submit(self._answers, batch[0].settings, questions)
                )
                await asyncio.wait([running])
                bug = running.exception()
                _tell(batch, [bug] * len(batch) if bug else running.result())

    def _take(self) -> list[_Job]:
        """The next batch; none if everybody has left."""
        oldest = next(iter(self._waiting), None)
        alike = (job for job in self._waiting if oldest and job.settings == oldest.settings)
        batch = list(islice(alike, self._batch_size))
        for job in batch:
            del self._waiting[job]
        if not self._waiting:
            self._arrived.clear()
        return batch

    def _answers(self, settings: Any, questions: Sequence[Any]) -> Sequence[Any]:
        """Answers, an error in place of one; a question that spoils a batch does not spoil the others'."""
        try:
            answers = self._answer(settings, questions)
            assert len(answers) == len(questions)
            return answers
        except QwendetError as error:
            if len(questions) == 1:
                return [error]
        return [self._answers(settings, [question])[0] for question in questions]


def _tell(batch: Sequence[_Job], answers: Sequence[Any]) -> None:
    for job, answer in zip(batch, answers, strict=True):
        if job.answer.done():  # its client has gone
            continue
        if isinstance(answer, BaseException):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
