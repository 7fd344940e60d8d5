"""The batches of the next optimizer step, made by a thread while this one is computed.

What takes time in making a batch (decoding, resizing, tokenising) runs outside Python's lock, and no part of
it uses a random state: the batches are those that would have been made without the thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from transformers import TrainerCallback

from qwendet.encoding.collate import Batch


class StepPrefetcher(TrainerCallback):
    """Takes the micro-batches of one step after another from an epoch's iterator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: ThreadPoolExecutor | None = None
        self._source: Iterator[Batch] | None = None
        self._next: Future[list[Batch]] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take one step ahead within the block; batches that were made ahead are given up at its end."""
        with ThreadPoolExecutor(1, "qwendet-ahead", initializer=self._choose_gpu) as self._pool:
            try:
                yield
            finally:
                self.wait()
                self._pool = self._source = self._next = None

    def take(self, source: Iterator[Batch], count: int) -> list[Batch]:
        """The next ``count`` batches, fewer at the end; whatever their making raised is raised here.

        The first of an epoch are made by the caller's own thread: a loader may have processes agree then.
        """
        if source is self._source and self._next is not None:
            batches = self._next.result()
        else:
            self.wait()
            batches = list(islice(source, count))
        self._source, self._next = source, None
        if self._pool is not None and len(batches) == count:
            self._next = self._pool.submit(lambda: list(islice(source, count)))
        return batches

    def _choose_gpu(self) -> None:
        if self._device.type == "cuda":  # every thread begins with the first one
            torch.cuda.set_device(self._device)

    def on_epoch_end(self, *_: Any, **kwargs: Any) -> None:
        """Wait for what accelerate does in the thread after an epoch's last batch: it counts epochs there."""
        self.wait()

    def wait(self) -> None:
        """Wait until the thread rests, so that something else may use tokenizer and images."""
        if self._next is not None:
            self._next.exception()
