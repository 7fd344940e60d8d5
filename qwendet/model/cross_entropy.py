"""Cross-entropy of a linear layer by tiles of its logits, gradients computed on the way forward.

    rows ─► logits of a chunk of rows, tile by tile ─► nll
                  └► softmax, but for the label ─┬► gradient of the chunk's rows
                                                 └► added to the gradient of the weight

All logits at once would be rows × vocabulary numbers, three times over, and 1,709 rows of a vocabulary of
152,064 are a gigabyte each. Here they exist for a chunk of rows at a time, in tiles that a CPU's cache holds,
and nothing is computed twice. That is possible because the sum over rows is what gets back-propagated: its
derivative by a row's nll is 1 until backward scales it, so both gradients are known before backward runs.
(The idea is that of Liger Kernel's fused linear cross-entropy, Hsu et al. 2024, §3.2; that a tile's softmax
is relative to its own largest logit until the whole row is known, that of Milakov & Gimelshein 2018.)

A tile is passed over as seldom as can be: what makes its exponentials a softmax is one factor a row, which
goes to the small side of the two products, and the label's own ``softmax - 1`` is added apart from them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwendet.model.precision import float32_or_wider
from qwendet.model.product import product

CHUNK_ROWS = {"cpu": 448, "cuda": 1024}
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
        size, count = CHUNK_ROWS[rows.device.type], len(rows)
        words = weight.split(TILE_WORDS[weight.device.type])
        firsts = list(accumulate((len(part) for part in words), initial=0))[:-1]
        nll = rows.new_empty(count, dtype=float32_or_wider(rows.dtype))
        of_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, count, size):
            chunk = slice(start, start + size)
            own, own_labels = rows[chunk], labels[chunk]
            tiles = [_tile(own, part, own_labels - first) for part, first in zip(words, firsts, strict=True)]
            total = torch.cat([tile.log_sum for tile in tiles], -1).logsumexp(-1, keepdim=True)
            own_nll = total - sum(tile.chosen for tile in tiles)
            nll[chunk] = own_nll[:, 0]
            if of_rows is None and of_weight is None:
                continue
            # What makes the others of a tile softmax / count, and (softmax - 1) / count at the label.
            factors = [(tile.largest - total).exp() / count for tile in tiles]
            at_label = torch.expm1(-own_nll) / count
            if of_rows is not None:
                of_own = at_label * weight[own_labels]
                for tile, factor, part in zip(tiles, factors, words, strict=True):
                    of_own.addcmul_(product(tile.others, part.T).to(of_own.dtype), factor)
                of_rows[chunk] = of_own
            if of_weight is not None:
                for tile, factor, first in zip(tiles, factors, firsts, strict=True):
                    of_words = of_weight[first : first + tile.others.shape[1]]
                    of_words.addmm_(tile.others.T, (factor * own).to(own.dtype))
                _add_by_label(of_weight, own_labels, at_label * own)
        ctx.save_for_backward(of_rows, of_weight)
        ctx.num_rows = count
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


class _Tile(NamedTuple):
    """A chunk's R rows against T words of the vocabulary, in float32 or wider but for ``others``."""

    others: Tensor
    """``(R, T)``: ``exp(logit - largest)``, but 0 at the label; in the rows' own precision."""
    largest: Tensor
    """``(R, 1)``: the largest logit."""
    log_sum: Tensor
    """``(R, 1)``: the logarithm of the sum of ``exp(logit)``."""
    chosen: Tensor
    """``(R, 1)``: the label's logit; 0 where the label is not among the words."""


def _tile(rows: Tensor, words: Tensor, labels: Tensor) -> _Tile:
    """``(R, D)`` rows against ``(T, D)`` words; ``labels`` ``(R,)`` count from the first of the words."""
    logits = product(rows, words)
    logits = logits.to(float32_or_wider(logits.dtype))
    labels = labels[:, None]
    present = (labels >= 0) & (labels < len(words))
    labels = labels.clamp(0, len(words) - 1)
    chosen = logits.gather(-1, labels).masked_fill(~present, 0)
    largest = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(largest).exp_()
    log_sum = largest + exponentials.sum(-1, keepdim=True).log()
    exponentials.scatter_(-1, labels, exponentials.gather(-1, labels).masked_fill(present, 0))
    return _Tile(exponentials.to(rows.dtype), largest, log_sum, chosen)


def _add_by_label(of_weight: Tensor, labels: Tensor, values: Tensor) -> None:
    """Add ``(R, D)`` values to the rows of ``(V, D)`` that labels ``(R,)`` name.

    Values of one label are added up first: in half precision a sum of many would stop growing.
    """
    same = labels[:, None] == labels
    is_first = same.int().argmax(-1) == torch.arange(len(labels), device=labels.device)
    sums = same.to(values.dtype) @ values
    of_weight.index_add_(0, labels, (sums * is_first[:, None]).to(of_weight.dtype))
