"""The plugin of `make portable` moves what another order of adding would move, and nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.rounding import Rounding

EPSILON = {torch.float32: 2**-23, torch.float64: 2**-52}


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_rounding__goes_by_the_shapes(dtype: torch.dtype) -> None:
    rows, columns = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0), dtype=dtype)
    plain = rows @ columns
    with Rounding():
        one, again, alone = rows @ columns, rows @ columns, rows[:1] @ columns
    assert torch.equal(one, again), "the same call on the same shapes"
    assert not torch.equal(one[:1], alone), "the same sums in another shape"
    size = rows.abs() @ columns.abs()
    for found, wanted, most in ((one, plain, size), (alone, plain[:1], size[:1])):
        assert 0 < ((found - wanted).abs() / most).max() <= 2 * EPSILON[dtype]


def test_rounding__leaves_exact_sums_alone() -> None:
    whole, parts = torch.arange(12.0).view(3, 4), torch.full((4, 1), 0.3)
    with Rounding():
        assert torch.equal(whole @ whole.T, torch.tensor([[14.0, 38, 62], [38, 126, 214], [62, 214, 366]]))
        assert torch.equal(parts @ parts.T, torch.full((4, 4), 0.3) * 0.3), "of one summand each"
        assert torch.equal(torch.stack([parts, parts]).flatten(), torch.full((8,), 0.3)), "copies"
