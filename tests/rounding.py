"""A pytest plugin: sums are rounded as on a processor that adds in another order, one for each shape.

    python -m pytest -p tests.rounding tests/unit/model/test_losses.py

Two processors differ by the order in which they add, which goes by the operation and its shapes. Here
the result of each sum or product moves by less than an epsilon of its summands' magnitudes, always by
the same for the same operation on the same shapes. A test that takes two different computations for
bitwise equal then fails on any machine, and one that repeats a computation passes. Sums of whole numbers
or of one are exact everywhere.

It sees what the test's own process computes, in float32 and float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = (torch.float32, torch.float64)
SUMS = ("mm", "bmm", "addmm", "baddbmm", "mv", "dot", "convolution", "sum", "mean")
"""Linear in each operand: the same operation on magnitudes gives the size of the summands."""
OTHERS = (
    *(
        "native_layer_norm",
        "native_layer_norm_backward",
        "_softmax",
        "_log_softmax",
        "_softmax_backward_data",
    ),
    *(
        "_log_softmax_backward_data",
        "convolution_backward",
        "logsumexp",
        "cumsum",
        "var",
        "linalg_vector_norm",
    ),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"),
    *("embedding_dense_backward",),
)
"""Each value moves by a share of itself."""


@lru_cache(maxsize=256)
def shares(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Numbers between -epsilon and epsilon, the same for the same operation and shapes."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    drawn = torch.rand(shape, generator=generator, dtype=dtype)
    return (drawn * 2 - 1) * torch.finfo(dtype).eps


def is_real(value: object) -> bool:
    """Whether it is a tensor of floats on the CPU, and no stand-in for one."""
    return type(value) is Tensor and value.dtype in DTYPES and value.device.type == "cpu"


def is_exact(name: str, operands: list[Tensor], size: Tensor) -> bool:
    """Whether any order gives the same: whole numbers, or a single summand."""
    if name.endswith("mm") and operands[-1].shape[-2] == 1:
        return True
    return all(bool((tensor == tensor.round()).all()) for tensor in (size, *operands))


class Rounding(TorchDispatchMode):
    """Moves what operations return."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = operation(*args, **kwargs)
        name = operation.overloadpacket.__name__
        operands = [value for value in args if isinstance(value, Tensor)]
        key = f"{operation} {[tuple(operand.shape) for operand in operands]}"
        if name in SUMS and is_real(found):
            size = operation(
                *(value.abs() if isinstance(value, Tensor) else value for value in args), **kwargs
            )
            if is_exact(name, operands, size):
                return found
            return found + size.nan_to_num(0, 0, 0) * shares(key, found.shape, found.dtype)
        if name not in OTHERS:
            return found
        results = found if isinstance(found, tuple) else (found,)
        moved = tuple(
            value * (1 + shares(f"{key} {at}", value.shape, value.dtype)) if is_real(value) else value
            for at, value in enumerate(results)
        )
        return moved if isinstance(found, tuple) else moved[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Round so from a test's first fixture to its last."""
    with Rounding():
        return (yield)
