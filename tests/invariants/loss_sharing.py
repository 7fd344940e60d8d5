"""Micro-batches: four of one are one of four, and those without boxes, demonstrations or answers do no harm.

The model runs once, on the whole batch; its outputs are handed out again, sample by sample and in float64, so
what is left to differ is the loss itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwendet.checks.runner import NotApplicableError
from qwendet.errors import Problem
from qwendet.model.detector import DetectorOutput
from qwendet.model.losses import TokenLosses
from tests.invariants.formula import BOX_TERMS
from tests.invariants.step import Replay, Share, watch_step
from tests.invariants.watched import Watched

TOLERANCE = 1e-6
"""Relative; the head's cost matrix and box targets are float32, all else float64."""
COUNTS_FIX = "see get_batch_samples, step_counts and loss_is_scaled_for_ga in qwendet/training/trainer.py"


def accumulation(watched: Watched) -> list[Problem]:
    """One batch of n and n batches of one give the same loss and pull at every token alike."""
    count = len(watched.ids)
    if count < 2:
        raise NotApplicableError("there is only one sample: nothing can be accumulated")
    together = _replay(watched, [list(range(count))])
    apart = _replay(watched, [[row] for row in range(count)])
    problems = []
    for name in ["total", *together[0].losses.terms]:
        whole, summed = _sum_of(together, name), _sum_of(apart, name)
        if not abs(whole - summed) <= TOLERANCE * max(1.0, abs(whole)):
            what = f"{name} of 1 × {count} samples is {whole:.8g}, of {count} × 1 it is {summed:.8g}"
            problems.append(Problem(what, "train.gradient_accumulation_steps", COUNTS_FIX))
    whole_pulls = _pulls(together[0])
    gap = max((_pulls(share) - whole_pulls).abs().max().item() for share in apart)
    if not gap <= TOLERANCE * whole_pulls.abs().max().item():
        what = f"the gradient of a token's loss differs by {gap:.3g} between 1 × {count} and {count} × 1"
        problems.append(Problem(what, "train.gradient_accumulation_steps", COUNTS_FIX))
    return problems


def _replay(watched: Watched, groups: list[list[int]]) -> list[Share]:
    """The step with the samples in these micro-batches, on outputs of the one real forward."""
    encoded = watched.subject.encoded
    batches = [watched.collate([encoded[row] for row in rows]) for rows in groups]
    outputs = [_joined(watched, rows) for rows in groups]
    return watch_step(watched.trainer, batches, Replay(outputs))


def _joined(watched: Watched, rows: list[int]) -> DetectorOutput:
    if len(rows) == 1:
        return watched.rows(rows)[0]
    return watched.outputs(torch.float64)


def _sum_of(shares: list[Share], name: str) -> float:
    if name == "total":
        return sum(share.backpropagated.item() for share in shares)
    return sum(share.losses.terms[name].item() for share in shares)


def _pulls(share: Share) -> Tensor:
    """Derivative of a share of the loss by one teacher token's loss and by one student token's."""
    return torch.stack(_gradients(share)[:2])


def _gradients(share: Share) -> list[Tensor]:
    """Derivatives of the loss by the model's outputs: sums of token losses, logits and boxes of the head."""
    assert share.output.tokens is not None
    leaves = [share.output.tokens.teacher_sum, share.output.tokens.student_sum]
    if share.output.head is not None:
        leaves += [share.output.head.logits, share.output.head.boxes_cxcywh]
    if not share.backpropagated.requires_grad:
        return [torch.full_like(leaf, torch.nan) for leaf in leaves]
    found: Sequence[Tensor | None] = torch.autograd.grad(
        share.backpropagated, leaves, retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def empty_sets(watched: Watched) -> list[Problem]:
    """Steps without boxes, demonstrations or any answer have finite losses and gradients."""
    problems: list[Problem] = []
    looked_at = []
    for kind, zero in (("negative", BOX_TERMS), ("bare", ("teacher",))):
        try:
            row = watched.row_of_kind(negative=kind == "negative", bare=kind == "bare")
        except NotApplicableError:
            continue
        (share,) = _replay(watched, [[row]])
        name = "without boxes" if kind == "negative" else "without demonstrations"
        problems += _share_problems(share, f"a step {name}", zero)
        looked_at.append(name)
    problems += _share_problems(
        _without_answers(watched), "a step without answers", ("lm", "teacher", "student")
    )
    return problems


def _without_answers(watched: Watched) -> Share:
    """A step of one prompt: no label at all."""
    encoder = watched.subject.bundle.encoder()
    sample = watched.subject.samples[watched.row_of_kind(negative=True, bare=True)]
    bare = type(sample)(sample.student, (), sample.where)
    batch = watched.collate([encoder.encode(bare, with_answer=False)])
    (own,) = watched.rows([watched.row_of_kind(negative=True, bare=True)])
    nothing = torch.zeros(0, dtype=torch.float64, device=watched.trainer.args.device)
    sums = (nothing.sum().requires_grad_(), nothing.sum().requires_grad_())
    output = DetectorOutput(TokenLosses(nothing, nothing.bool(), *sums), own.head)
    (share,) = watch_step(watched.trainer, [batch], Replay([output]))
    return share


def _share_problems(share: Share, what: str, zero: tuple[str, ...]) -> list[Problem]:
    where, terms = share.batch["where"][0], share.losses.terms
    values = {name: term.item() for name, term in terms.items()} | {"total": share.backpropagated.item()}
    broken = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
    problems = [Problem(f"{what}: {name} is {values[name]}", where, EMPTY_FIX) for name in broken]
    problems += [
        Problem(f"{what}: {name} is {values[name]:.4g}, expected 0", where, EMPTY_FIX)
        for name in zero
        if name in values and values[name] != 0 and name not in broken
    ]
    if not share.backpropagated.requires_grad:
        problems.append(
            Problem(f"{what}: its loss has no gradient, so backward would crash", where, EMPTY_FIX)
        )
    elif not all(bool(gradient.isfinite().all()) for gradient in _gradients(share)):
        problems.append(Problem(f"{what}: the gradient is not finite", where, EMPTY_FIX))
    return problems


EMPTY_FIX = "an empty mean must be a 0 with a gradient: see the clamps in qwendet/model/losses.py"
