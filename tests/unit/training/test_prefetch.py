"""Batches made one step ahead are the batches, and what goes wrong is told when they are asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qwendet.training.prefetch import StepPrefetcher

CPU = torch.device("cpu")


def numbered(count: int, made: list[tuple[int, str]] | None = None) -> Iterator[dict[str, Any]]:
    for number in range(count):
        if made is not None:
            made.append((number, threading.current_thread().name))
        yield {"number": number}


def take_all(
    prefetcher: StepPrefetcher, source: Iterator[dict[str, Any]], sizes: list[int]
) -> list[list[int]]:
    return [[batch["number"] for batch in prefetcher.take(source, size)] for size in sizes]


@pytest.mark.parametrize("count", [6, 7])
def test_take__gives_every_batch_once_in_order_in_several_epochs(count: int) -> None:
    prefetcher = StepPrefetcher(CPU)
    sizes = [2, 2, 2] + [1] * (count - 6)
    with prefetcher.running():
        for _ in range(2):
            assert take_all(prefetcher, numbered(count), sizes) == [[0, 1], [2, 3], [4, 5], [6]][: len(sizes)]
        assert take_all(prefetcher, numbered(3), [2]) == [[0, 1]]


def test_take__makes_what_is_asked_for_and_no_more_where_nothing_runs_ahead() -> None:
    """As when a check looks at one step: no thread is left behind."""
    prefetcher, made = StepPrefetcher(CPU), list[tuple[int, str]]()
    before = threading.active_count()
    assert take_all(prefetcher, numbered(6, made), [2]) == [[0, 1]]
    assert [number for number, _ in made] == [0, 1]
    assert threading.active_count() == before


def test_take__the_first_step_of_an_epoch_is_made_by_the_caller_the_next_ones_ahead_by_the_thread() -> None:
    prefetcher, made = StepPrefetcher(CPU), list[tuple[int, str]]()
    source, before = numbered(6, made), threading.active_count()
    with prefetcher.running():
        prefetcher.take(source, 2)
        prefetcher.wait()
        assert [number for number, _ in made] == [0, 1, 2, 3], "one step ahead, not more"
        prefetcher.take(source, 2)
    threads = [name for _, name in made]
    assert threads[:2] == [threading.current_thread().name] * 2
    assert set(threads[2:]) == {"qwendet-ahead_0"}
    assert threading.active_count() == before


def test_end_of_epoch__waits_for_what_a_loader_does_after_its_last_batch() -> None:
    ended = []

    def loader() -> Iterator[dict[str, Any]]:
        yield from numbered(2)
        time.sleep(0.2)
        ended.append("counted")

    prefetcher = StepPrefetcher(CPU)
    with prefetcher.running():
        assert take_all(prefetcher, loader(), [2]) == [[0, 1]]
        prefetcher.on_epoch_end()
        assert ended == ["counted"]


def test_take__an_error_is_raised_in_the_step_that_it_belongs_to() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield {"number": 0}
        raise ValueError("broken sample")

    prefetcher, source = StepPrefetcher(CPU), broken()
    with prefetcher.running():
        assert take_all(prefetcher, source, [1]) == [[0]]
        prefetcher.wait()
        with pytest.raises(ValueError, match="broken sample"):
            prefetcher.take(source, 1)
