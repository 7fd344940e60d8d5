"""Products: what torch's own linear layer gives, whichever library computes them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qwendet.model.product import FEW_ROWS, product


@pytest.mark.parametrize("rows", [0, 1, FEW_ROWS, FEW_ROWS + 1, 40])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_product__is_linear(rows: int, has_bias: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    given, columns, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, 1, 8), (30, 8), (30,))
    )
    found = product(given, columns, bias if has_bias else None)
    torch.testing.assert_close(found, F.linear(given, columns, bias if has_bias else None))


def test_product__takes_columns_of_any_layout() -> None:
    rows, columns = torch.randn(6, 8), torch.randn(8, 30)
    torch.testing.assert_close(product(rows, columns.T), rows @ columns)
