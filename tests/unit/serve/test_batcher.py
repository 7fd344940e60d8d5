"""What is ready is one batch; the queue is bounded; who leaves is not computed; errors stay apart."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from qwendet.errors import DataError
from qwendet.serve.batcher import Batcher
from qwendet.serve.refusals import RefusedError


class Model:
    """Doubles numbers; its first batch waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.batches: list[tuple[Any, list[int]]] = []
        self.prepared: list[int] = []

    def prepare(self, settings: Any, question: int) -> int:
        if question == -1:
            raise DataError("negative", "question", "send a positive one")
        self.prepared.append(question)
        return question

    def length(self, question: int) -> int:
        return abs(question) % 100

    def answer(self, settings: Any, questions: Sequence[int]) -> list[int]:
        self.batches.append((settings, list(questions)))
        assert self.go.wait(10)
        if -2 in questions:
            raise ZeroDivisionError
        return [2 * number for number in questions]


def run(scene: Callable[[Batcher, Model], Coroutine[Any, Any, None]], waiting: int = 64) -> Model:
    """Play a scene with a batcher whose thread is busy with the question 0."""
    model = Model()

    async def play() -> None:
        batcher = Batcher(model, 4, waiting, lambda size: None)
        first = asyncio.create_task(batcher.ask("a", 0))
        while not model.batches:
            await asyncio.sleep(0.001)
        try:
            await scene(batcher, model)
        finally:
            model.go.set()
        assert await first == 0
        await batcher.stop()

    asyncio.run(play())
    return model


def asked(batcher: Batcher, settings: str, *numbers: int) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(batcher.ask(settings, number)) for number in numbers]


def test_ask__what_waits_with_the_same_settings_is_one_batch() -> None:
    async def scene(batcher: Batcher, model: Model) -> None:
        tasks = asked(batcher, "a", 1, 2) + asked(batcher, "b", 3) + asked(batcher, "a", 4, 5, 6)
        await asyncio.sleep(0.05)
        assert batcher.waiting == 6
        model.go.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10, 12]

    found = [(settings, sorted(batch)) for settings, batch in run(scene).batches]
    assert found == [("a", [0]), ("a", [1, 2, 4, 5]), ("b", [3]), ("a", [6])]


def test_ask__a_full_queue_refuses() -> None:
    async def scene(batcher: Batcher, model: Model) -> None:
        tasks = asked(batcher, "a", 1, 2)
        await asyncio.sleep(0.01)
        with pytest.raises(RefusedError, match="2 images wait already") as refusal:
            await batcher.ask("a", 3)
        assert refusal.value.status == 503
        model.go.set()
        assert await asyncio.gather(*tasks) == [2, 4]

    assert run(scene, waiting=2).batches[1:] == [("a", [1, 2])]


def test_ask__who_leaves_is_not_computed() -> None:
    async def scene(batcher: Batcher, model: Model) -> None:
        left, stays = asked(batcher, "a", 1, 2)
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.sleep(0.01)
        assert batcher.waiting == 1
        model.go.set()
        assert await stays == 4

    assert run(scene).batches[1:] == [("a", [2])]


def test_ask__all_leave_and_the_next_is_answered() -> None:
    async def scene(batcher: Batcher, model: Model) -> None:
        (left,) = asked(batcher, "a", 1)
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.sleep(0.01)
        model.go.set()
        await asyncio.sleep(0.05)
        assert await batcher.ask("b", 7) == 14

    assert run(scene).batches[1:] == [("b", [7])]


def test_ask__a_bad_question_does_not_spoil_its_batch() -> None:
    async def scene(batcher: Batcher, model: Model) -> None:
        tasks = asked(batcher, "a", 1, -1, 2)
        await asyncio.sleep(0.05)
        model.go.set()
        first, bad, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert (first, second, str(bad)) == (2, 4, "question: negative (send a positive one)")

    assert run(scene).batches[1:] == [("a", [1, 2])]


def test_ask__the_oldest_and_those_nearest_to_it_in_length_are_the_next_batch() -> None:
    async def scene(batcher: Batcher, model: Model) -> None:
        tasks = asked(batcher, "a", 30, 90, 31, 80, 29, 33)
        await asyncio.sleep(0.05)
        model.go.set()
        assert await asyncio.gather(*tasks) == [60, 180, 62, 160, 58, 66]

    assert [sorted(batch) for _, batch in run(scene).batches[1:]] == [[29, 30, 31, 33], [80, 90]]


def test_ask__while_a_batch_is_computed_two_more_are_prepared_and_no_others() -> None:
    async def scene(batcher: Batcher, model: Model) -> None:
        tasks = asked(batcher, "a", *range(1, 21))
        await asyncio.sleep(0.1)
        assert sorted(model.prepared) == list(
            range(12)
        )  # one is computed, eleven are ready: three batches of 4
        model.go.set()
        assert await asyncio.gather(*tasks) == [2 * number for number in range(1, 21)]

    run(scene)


def test_ask__a_bug_is_told_and_the_thread_goes_on() -> None:
    async def scene(batcher: Batcher, model: Model) -> None:
        (task,) = asked(batcher, "a", -2)
        model.go.set()
        with pytest.raises(ZeroDivisionError):
            await task
        assert await batcher.ask("a", 8) == 16

    run(scene)
