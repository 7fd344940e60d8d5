"""Which tokens of a block greedy decoding would have written: those that one token at a time writes.

    block       1   2   3   ,   ␣   4        the newest token, and a draft
    likeliest   2   3   ,   ␣   5   …        after each of them
    written     2   3   ,   ␣   5            the draft holds up to its first token that is not the likeliest

Logits of a row differ by rounding between a block and the row alone. Where the two highest are closer than
that, greedy decoding itself is a coin; such a token is decided by reading the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qwendet.inference.constrained_decoding import AnswerConstraint

ROUNDING = 1e-3
"""Of float32 logits between a block and a row alone; docs/performance.md has how much was seen."""


class Choice(NamedTuple):
    """A token: the likeliest, its log-probability among all tokens, its logit's lead over the next."""

    token: int
    log_prob: float
    margin: float


@dataclass(frozen=True)
class Likeliest:
    """What a forward finds likeliest after each token of a block."""

    logits: Tensor
    choices: list[list[Choice]]

    @classmethod
    def of(cls, logits: Tensor, *, with_margins: bool = True) -> Likeliest:
        """Of ``(B, K, V)`` logits; without margins all leads are infinite."""
        tokens = logits.argmax(-1)
        highest = logits.topk(2).values if with_margins else logits.amax(-1, keepdim=True)
        log_probs = -(logits - highest[..., :1]).exp_().sum(-1).log_()
        margins = highest[..., 0] - highest[..., 1] if with_margins else torch.full_like(log_probs, torch.inf)
        rows = zip(tokens.tolist(), log_probs.tolist(), margins.tolist(), strict=True)
        return cls(logits, [list(map(Choice, *row)) for row in rows])


def verified(
    found: Likeliest,
    index: int,
    draft: Sequence[int],
    alone: Callable[[int, int], Tensor] | None,
    row: int,
    constraint: AnswerConstraint | None,
    end_ids: set[int],
) -> list[Choice]:
    """The tokens that follow the newest one of a row: at least one.

    Args:
        found: by the forward.
        index: of the row in it.
        draft: what stands in the block behind the newest token.
        alone: logits after a token of the block, read alone; ``None`` takes what the forward says.
        row: of the batch, for the constraint, which takes note of what is written.
        constraint: keeps answers inside their grammar, if there is one.
        end_ids: tokens that end an answer.
    """
    written: list[Choice] = []
    for place in range(len(draft) + 1):
        choice = found.choices[index][place]
        if constraint is not None and not constraint.allows(row, choice.token):
            choice = _likeliest_of(found.logits[index, place], constraint.allowed(row))
        if alone is not None and choice.margin < ROUNDING:
            allowed = None if constraint is None else constraint.allowed(row)
            choice = _likeliest_of(alone(index, place), allowed)
        written.append(choice)
        if constraint is not None:
            constraint.write(row, choice.token)
        if choice.token in end_ids or place == len(draft) or choice.token != draft[place]:
            break
    return written


def _likeliest_of(logits: Tensor, allowed: Sequence[int] | None) -> Choice:
    """Of ``(V,)`` logits, among the tokens that are allowed."""
    if allowed is None:
        return Likeliest.of(logits[None, None]).choices[0][0]
    ids = torch.tensor(sorted(allowed), device=logits.device)  # of equals the first, as in argmax
    scores = logits[ids]
    best = int(scores.argmax())
    others = torch.cat([scores[:best], scores[best + 1 :]])
    margin = float(scores[best] - others.max()) if len(others) else torch.inf
    return Choice(int(ids[best]), float(scores[best] - logits.logsumexp(-1)), margin)
