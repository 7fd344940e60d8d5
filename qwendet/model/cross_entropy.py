"""Cross-entropy of a linear layer by chunks of rows, gradients computed on the way forward.

    rows ─► logits of a chunk ─► nll
                  └► softmax - one-hot ─┬► gradient of the chunk's rows
                                        └► added to the gradient of the weight

All logits at once would be rows × vocabulary numbers, three times over, and 1,709 rows of a vocabulary of
152,064 are a gigabyte each. Here they exist for a chunk at a time, and nothing is computed twice. That is
possible because the sum over rows is what gets back-propagated: its derivative by a row's nll is 1 until
backward scales it, so both gradients are known before backward runs. (The idea is that of Liger Kernel's
fused linear cross-entropy, Hsu et al. 2024, §3.2.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = {"cpu": 256, "cuda": 1024}
"""Rows of logits at a time: enough to keep the matrix products busy, few enough to stay small."""


def linear_cross_entropy(rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of ``-log softmax(rows @ weight.T)[label]``, in full precision from the logits on.

    Args:
        rows: ``(R, D)``.
        weight: ``(V, D)``.
        labels: ``(R,)`` int64 in ``[0, V)``.

    Returns:
        The sum, a scalar on the graph, and the ``(R,)`` summands, without gradient; both float32, or
        float64 if the arguments are.

    Example:
        >>> rows, weight = torch.zeros(2, 3, requires_grad=True), torch.eye(4, 3)
        >>> total, nll = linear_cross_entropy(rows, weight, torch.tensor([0, 3]))
        >>> nll.tolist(), total.item()
        ([1.3862943649291992, 1.3862943649291992], 2.7725887298583984)
    """
    device = rows.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if not torch.is_grad_enabled():  # unasked, forward would compute the gradients all the same
        rows, weight = rows.detach(), weight.detach()
    with torch.autocast(device, enabled=False):
        result: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            rows.to(dtype), weight.to(dtype), labels
        )
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are kept divided by the number of rows, so that no sum leaves the range of float16."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        size = CHUNK_ROWS[rows.device.type]
        nll = rows.new_empty(len(rows), dtype=_raised(rows.dtype))
        of_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            nll[chunk], exponentials, sums = _nll(_product(rows[chunk], weight), labels[chunk])
            if of_rows is None and of_weight is None:
                continue
            error = _error(exponentials, sums, labels[chunk], len(rows)).to(rows.dtype)
            if of_rows is not None:
                of_rows[chunk] = _product(error, weight.T)
            if of_weight is not None:
                of_weight.addmm_(error.T, rows[chunk])
        ctx.save_for_backward(of_rows, of_weight)
        ctx.num_rows = len(rows)
        ctx.mark_non_differentiable(nll)
        return nll.sum(), nll

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        of_rows, of_weight = ctx.saved_tensors
        scale = upstream[0] * ctx.num_rows
        return (
            None if of_rows is None else of_rows * scale.to(of_rows.dtype),
            None if of_weight is None else of_weight * scale.to(of_weight.dtype),
            None,
        )


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ columns.T``: ``(R, K)`` and ``(C, K)`` give ``(R, C)``.

    On the CPU float32 goes to oneDNN instead of MKL: as exact and, on AMD, in half the time. torch has no
    public switch for it.
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")
        return product
    return rows @ columns.T


def _raised(dtype: torch.dtype) -> torch.dtype:
    """float32 in place of half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite ``(R, V)`` logits by ``exp(logit - largest)``; return nll ``(R,)``, these, and their sums."""
    logits = logits.to(_raised(logits.dtype))
    largest = logits.amax(-1, keepdim=True)
    chosen = logits.gather(-1, labels[:, None]) - largest
    exponentials = logits.sub_(largest).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    return (sums.log() - chosen)[:, 0], exponentials, sums


def _error(exponentials: Tensor, sums: Tensor, labels: Tensor, count: int) -> Tensor:
    """Overwrite exponentials by ``(softmax - one-hot) / count``."""
    error = exponentials.div_(sums * count)
    return error.scatter_add_(-1, labels[:, None], error.new_full((len(labels), 1), -1 / count))
