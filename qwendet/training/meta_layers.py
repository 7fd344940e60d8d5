"""What a layer keeps and what it needs on the way, measured by running it on meta tensors.

A meta tensor has a shape and a type and no numbers, so a layer of a 72B model runs in milliseconds. The
storages that its operators make are counted while they are alive: those left after the forward pass are
what autograd keeps, and the most at once, in the backward pass, is what the layer needs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface

META_ATTENTION = "qwendet_meta"


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


class products_in(TorchFunctionMode):  # noqa: N801 - a context manager, used as one
    """Multiply in another type, as autocast does, which meta tensors have none of."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Cast what goes into a product."""
        if func is F.linear:
            args = [part if part is None else part.to(self.dtype) for part in args]
        return func(*args, **(kwargs or {}))


# Attention


class _Attention(torch.autograd.Function):
    """Fused attention: keeps queries, keys, values, the mask, its output, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        output = torch.empty_like(query)
        row_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, row_sums, bias)
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return (*(torch.empty_like(part) for part in (query, key, value)), None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_joined: bool = False,
    **kwargs: Any,
) -> Any:
    """Attend as one; ``is_joined`` copies the outcome, as attention by samples does to put them together."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotated ones in float32
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1 and attention_mask is not None:  # then torch is given them repeated
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    # torch makes numbers of a mask, in each layer anew.
    bias = None if attention_mask is None else attention_mask.to(query.dtype)
    output: Tensor = _Attention.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
    output = output.transpose(1, 2).contiguous()
    return output.clone() if is_joined else output, None


@contextmanager
def meta_attention() -> Iterator[None]:
    """Have transformers know :data:`META_ATTENTION`: on meta tensors torch would choose the plain way."""
    AttentionInterface.register(META_ATTENTION, _attend)
    yield
