"""The share of weights that a step can move, against optimizers that take it."""

from __future__ import annotations

import pytest
import torch

from qwendet.checks.loss.optimizer import moved_share


def normal(dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "rate", "share"),
    [
        (torch.bfloat16, 1e-4, 0.90),
        (torch.bfloat16, 1e-5, 0.156),
        (torch.bfloat16, 5e-6, 0.078),
        (torch.float32, 5e-6, 1.0),
        (torch.float16, 1e-5, 0.88),
    ],
)
def test_moved_share__is_that_of_an_adamw_step(dtype: torch.dtype, rate: float, share: float) -> None:
    before = normal(dtype)
    weights = torch.nn.Parameter(before.clone())
    sign = torch.randint(0, 2, before.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    weights.grad = sign.to(dtype)
    torch.optim.AdamW(
        [weights], lr=rate, weight_decay=0.0, eps=1e-8 if dtype != torch.float16 else 1e-4
    ).step()
    moved = float((weights.detach() != before).float().mean())
    assert moved_share(before, rate) == pytest.approx(moved, abs=0.01)
    assert moved == pytest.approx(share, abs=0.02)


def test_moved_share__what_kahan_summation_keeps_arrives_later() -> None:
    optimi = pytest.importorskip("optimi")
    before = normal(torch.bfloat16)
    weights = torch.nn.Parameter(before.clone())
    optimizer = optimi.StableAdamW([weights], lr=1e-5, weight_decay=0.0)
    for _ in range(50):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    assert float((weights.detach() != before).float().mean()) > 0.99
    assert moved_share(before, 1e-5, kept=True) == 1.0
    assert moved_share(torch.full((8,), 1e3).bfloat16(), 1e-5, kept=True) == 0.0


def test_moved_share__of_nothing_and_of_zeros() -> None:
    assert moved_share(torch.zeros(0), 1e-5) == 1.0
    assert moved_share(torch.zeros(4, dtype=torch.bfloat16), 1e-30) == 1.0
