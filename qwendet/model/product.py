"""Matrix products with a wide second factor, such as ``lm_head``'s, by the library that is quick at them.

torch gives those of float32 on a CPU to MKL, whose widest instructions are for Intel's processors: on AMD's,
oneDNN takes half the time. On Intel's MKL is the quicker one, but for few rows against a vocabulary, as in
generation. Both are as exact. torch has no public switch for it.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_INFO = Path("/proc/cpuinfo")
ONEDNN_ROWS = {"Intel": range(4, 33), "other": range(4, 1 << 62)}
"""Numbers of rows that oneDNN is the quicker one for."""


@cache
def maker() -> str:
    """``Intel`` or ``other``: who made the processor."""
    described = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.is_file() else platform.processor()
    return "Intel" if "GenuineIntel" in described else "other"


def product(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ columns.T + bias``: ``(…, K)``, ``(C, K)`` and ``(C,)`` give ``(…, C)``.

    Example:
        >>> product(torch.eye(2), torch.arange(6.0).view(3, 2))
        tensor([[0., 2., 4.],
                [1., 3., 5.]])
    """
    is_float32 = rows.dtype == columns.dtype == torch.float32
    is_float32 = is_float32 and not torch.is_autocast_enabled(rows.device.type)
    is_float32_on_cpu = is_float32 and rows.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if is_float32_on_cpu and rows.shape[:-1].numel() in ONEDNN_ROWS[maker()]:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")
        return result
    return F.linear(rows, columns, bias)
