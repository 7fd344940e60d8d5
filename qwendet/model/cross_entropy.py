"""Cross-entropy of a linear layer by tiles of its logits, gradients computed on the way forward.

    rows ─► logits of a chunk of rows, tile by tile ─► nll
                  └► softmax - one-hot ─┬► gradient of the chunk's rows
                                        └► added to the gradient of the weight

All logits at once would be rows × vocabulary numbers, three times over, and 1,709 rows of a vocabulary of
152,064 are a gigabyte each. Here they exist for a chunk of rows at a time, in tiles that a CPU's cache holds,
and nothing is computed twice. That is possible because the sum over rows is what gets back-propagated: its
derivative by a row's nll is 1 until backward scales it, so both gradients are known before backward runs.
(The idea is that of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, §3.2; that a tile's softmax
is relative to its own largest logit until the whole row is known, that of Milakov & Gimelshein 2018.)
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwendet.model.product import product

CHUNK_ROWS = {"cpu": 256, "cuda": 1024}
"""Rows of logits at a time: enough to keep the matrix products busy, few enough to stay small."""

TILE_WORDS = {"cpu": 8192, "cuda": 1 << 20}
"""Words of the vocabulary a tile: what a CPU's last cache holds; on a GPU all, which is fewer launches."""


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
        words = weight.split(TILE_WORDS[weight.device.type])
        firsts = list(accumulate((len(part) for part in words), initial=0))[:-1]
        nll = rows.new_empty(len(rows), dtype=_raised(rows.dtype))
        of_rows = torch.zeros_like(rows, dtype=nll.dtype) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:  # the first chunk overwrites it: filling it first would cost a pass
            of_weight = torch.empty_like(weight) if len(rows) else torch.zeros_like(weight)
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            tiles = [
                _tile(rows[chunk], part, labels[chunk] - first)
                for part, first in zip(words, firsts, strict=True)
            ]
            total = torch.cat([tile.log_sum for tile in tiles], -1).logsumexp(-1, keepdim=True)
            nll[chunk] = (total - sum(tile.chosen for tile in tiles))[:, 0]
            if of_rows is None and of_weight is None:
                continue
            for tile, part, first in zip(tiles, words, firsts, strict=True):
                error = _error(tile, total, len(rows)).to(rows.dtype)
                if of_rows is not None:
                    of_rows[chunk] += product(error, part.T)
                if of_weight is not None:
                    of_words = of_weight[first : first + len(part)]
                    of_words.addmm_(error.T, rows[chunk], beta=min(start, 1))
        ctx.save_for_backward(None if of_rows is None else of_rows.to(rows.dtype), of_weight)
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


def _raised(dtype: torch.dtype) -> torch.dtype:
    """float32 in place of half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class _Tile(NamedTuple):
    """A chunk's R rows against T words of the vocabulary. All but the labels are in ``_raised`` precision."""

    exponentials: Tensor
    """``(R, T)``: ``exp(logit - largest)``."""
    largest: Tensor
    """``(R, 1)``: the largest logit."""
    log_sum: Tensor
    """``(R, 1)``: the logarithm of the sum of ``exp(logit)``."""
    chosen: Tensor
    """``(R, 1)``: the label's logit; 0 where the label is not among the words."""
    labels: Tensor
    """``(R, 1)``: the label's place among the words, some place where it is not among them."""
    present: Tensor
    """``(R, 1)`` bool: whether the label is among the words."""


def _tile(rows: Tensor, words: Tensor, labels: Tensor) -> _Tile:
    """``(R, D)`` rows against ``(T, D)`` words; ``labels`` ``(R,)`` count from the first of the words."""
    logits = product(rows, words)
    logits = logits.to(_raised(logits.dtype))
    labels = labels[:, None]
    present = (labels >= 0) & (labels < len(words))
    labels = labels.clamp(0, len(words) - 1)
    chosen = logits.gather(-1, labels).masked_fill(~present, 0)
    largest = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(largest).exp_()
    log_sum = largest + exponentials.sum(-1, keepdim=True).log()
    return _Tile(exponentials, largest, log_sum, chosen, labels, present)


def _error(tile: _Tile, total: Tensor, count: int) -> Tensor:
    """Overwrite a tile's exponentials by ``(softmax - one-hot) / count``.

    ``total`` ``(R, 1)`` is ``log_sum`` over all tiles of a row.
    """
    error = tile.exponentials.mul_((tile.largest - total).exp() / count)
    return error.scatter_add_(-1, tile.labels, tile.present.to(error.dtype) / -count)
