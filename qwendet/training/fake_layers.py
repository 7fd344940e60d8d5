"""What a layer keeps and what it needs on the way, measured by running it on fake tensors.

A fake tensor has a shape, a type and a device and no numbers, so a layer of a 72B model runs in milliseconds,
with the attention and the autocast that torch would choose for real ones. The storages that its operators
make are counted while they are alive: those left after the forward pass are what autograd keeps, and the
most at once, in the backward pass, is what the layer needs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Footprint:
    """Bytes of a computation.

    Attributes:
        kept: what autograd keeps of its forward pass, its result included.
        peak: the most at once, the backward pass included.
    """

    kept: int = 0
    peak: int = 0


def footprint(compute: Callable[[], Tensor]) -> Footprint:
    """Run a computation forward and backward and count what it makes; its inputs are not counted."""
    with _Live() as live:
        result = compute()
        kept = live.now
        if result.requires_grad:
            result.backward(torch.empty_like(result))
    return Footprint(kept, live.peak)


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operator only reads or writes was made before.
        for tensor in _tensors((args, kwargs or {})):
            self._known.setdefault(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
