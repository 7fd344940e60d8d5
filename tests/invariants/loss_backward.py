"""What token losses send back: the textbook's gradient, at the states before the answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwendet.checks.loss.tokens import MULTIPLE
from qwendet.errors import Problem
from tests.invariants.answer_spans import Spans
from tests.invariants.watched import Watched

GRADIENT = {
    torch.float64: 1.3e-15,
    torch.float32: 8.3e-7,
    torch.bfloat16: 3.7e-3,
    torch.float16: 7.4e-4,
}
"""Difference of the gradients at the hidden states, as a share of their norm."""
FIX = "see _token_losses in qwendet/model/detector.py and qwendet/model/cross_entropy.py"


def token_gradients(watched: Watched) -> list[Problem]:
    """Hidden states get ``(softmax - one-hot) @ lm_head`` before each token of an answer, and 0 elsewhere."""
    dtype = watched.detector.dtype
    tolerance = MULTIPLE * GRADIENT[dtype]
    gaps = gradient_gaps(watched)
    problems = [
        Problem(
            f"the gradient of the {name} tokens at the hidden states is off by {gap:.2g} of its norm",
            where,
            FIX,
        )
        for name, (gap, where) in gaps.items()
        if not gap <= tolerance
    ]
    return problems


def gradient_gaps(watched: Watched) -> dict[str, tuple[float, str]]:
    """Of both sums how far the gradient is from the textbook's (share of its norm), and the worst sample."""
    share, hidden = watched.share_and_hidden
    tokens = share.output.tokens
    assert tokens is not None
    gaps = {}
    for name, total in (("teacher", tokens.teacher_sum), ("student", tokens.student_sum)):
        expected = _expected(watched, hidden, of_student=name == "student")
        found: Sequence[Tensor | None] = [None]
        if total.requires_grad:
            found = torch.autograd.grad(total, [hidden], retain_graph=True, allow_unused=True)
        got = torch.zeros_like(expected) if found[0] is None else found[0].double()
        gap = (got - expected).norm() / expected.norm().clamp(min=1e-12)
        gaps[name] = (gap.item(), _worst_sample(watched, got - expected))
    return gaps


def _worst_sample(watched: Watched, gap: Tensor) -> str:
    norms = [
        gap[row, first : first + len(ids)].norm().item()
        for (row, first), ids in zip(watched.places, watched.ids, strict=True)
    ]
    return watched.subject.samples[norms.index(max(norms))].where


def _expected(watched: Watched, hidden: Tensor, *, of_student: bool) -> Tensor:
    """Gradient of the summed token losses by the hidden states, in float64."""
    expected = torch.zeros_like(hidden, dtype=torch.float64)
    for (row, first), ids, spans in zip(watched.places, watched.ids, watched.spans, strict=True):
        own: Spans = spans[-1:] if of_student else spans[:-1]
        for start, end in own:
            before = slice(first + start - 1, first + end - 1)
            labels = torch.tensor(ids[start:end], device=hidden.device)
            expected[row, before] = _textbook(watched, hidden[row, before], labels)
    return expected


def _textbook(watched: Watched, states: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad(), watched.detector.computing():
        leaf = states.detach().requires_grad_()
        logits = watched.detector.vlm.lm_head(leaf)
        error = logits.detach().double().softmax(-1)
        error[torch.arange(len(labels)), labels] -= 1
        (gradient,) = torch.autograd.grad(logits, [leaf], error.to(logits.dtype))
    return gradient.double()
