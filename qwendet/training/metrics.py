"""What a run tells of its steps: loss terms, learning rates, gradient norms, throughput.

    micro-batches ─► loss terms ──┐
    gradients ─────► norms ───────┼─► one tensor a step ─► host ─► sums ─► a row every train.logging_steps
    counts over all ranks ────────┘

Names and units are in ``docs/logging.md``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qwendet.encoding.collate import Batch

VOLUME = ("samples", "tokens", "positions")


def step_volume(batches: Iterable[Batch]) -> Tensor:
    """Samples, tokens, and positions (padding included) of a step's micro-batches: ``(3,)`` float64."""
    volume = torch.zeros(len(VOLUME), dtype=torch.float64)
    for batch in batches:
        num_tokens = batch["num_tokens"]
        counts = [len(num_tokens), sum(num_tokens), batch["input_ids"].numel()]
        volume += torch.tensor(counts, dtype=torch.float64)
    return volume


def group_norms(groups: Sequence[Mapping[str, Any]], scale: float = 1.0) -> dict[str, Tensor]:
    """Norm of the gradients of each parameter group by name, a scalar on its device.

    Gradients that were multiplied by ``scale``, for training in float16, are divided by it.
    """
    gradients: dict[str, list[Tensor]] = {}
    for group in groups:
        found = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        gradients.setdefault(group["name"], []).extend(found)
    return {name: torch.nn.utils.get_total_norm(own) / scale for name, own in gradients.items()}


class TrainingLog:
    """The numbers since the last logged row.

    Attributes:
        sources: files and lines of the samples of the step that is being computed.
    """

    def __init__(self) -> None:
        self.sources: list[str] = []
        self._terms: dict[str, Tensor] = {}
        self._volume = torch.zeros(len(VOLUME))
        self._latest: dict[str, float] = {}
        self._clear()

    def _clear(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._steps = 0
        self._waited = 0.0
        self._paused = 0.0
        self._began = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside the block is waited for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """The time inside the block is not training: it counts neither as step nor as waiting."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def begin_step(self, volume: Tensor) -> None:
        """Remember what the step holds: ``(3,)`` from :func:`step_volume`, added up over ranks."""
        self._volume = volume

    def add(self, terms: Mapping[str, Tensor], sources: Sequence[str]) -> None:
        """Add a micro-batch's share of the step's loss terms."""
        for name, value in terms.items():
            earlier = self._terms.get(name)
            self._terms[name] = value.detach() if earlier is None else earlier + value.detach()
        self.sources += sources

    def take_terms(self) -> tuple[list[str], Tensor]:
        """The step's terms on this rank by name, ``(terms,)`` float64; the next step begins without any."""
        names = sorted(self._terms)
        values = torch.stack([self._terms[name].double() for name in names])
        self._terms = {}
        return names, values

    def end_step(
        self, names: Sequence[str], terms: Tensor, norms: Mapping[str, Tensor], rates: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Fetch the step's numbers from the device, all at once, and keep them for the next row."""
        parts = [terms, *(norm.to(terms)[None] for norm in norms.values()), self._volume.to(terms)]
        values = iter(torch.cat(parts).tolist())
        found = {name: next(values) for name in names}
        lengths = {name: next(values) for name in norms}
        for name, value in [*found.items(), *zip(VOLUME, values, strict=True)]:
            self._sums[name] += value
        self._latest = lengths | {f"learning_rate/{group}": rate for group, rate in rates.items()}
        self._steps += 1
        return found, lengths

    def row(self) -> dict[str, float]:
        """What is logged, by name; the next row begins here. Empty if no step was taken since the last."""
        if not self._steps:
            return {}
        samples, tokens, positions = (self._sums.pop(name) for name in VOLUME)
        seconds = time.perf_counter() - self._began - self._paused
        row = {f"loss/{name}": value / self._steps for name, value in self._sums.items()}
        row |= self._latest
        row["throughput/samples_per_second"] = samples / seconds
        row["throughput/tokens_per_second"] = tokens / seconds
        row["throughput/padding_share"] = 1 - tokens / positions
        row["time/waiting_for_data"] = self._waited / seconds
        self._clear()
        return row
