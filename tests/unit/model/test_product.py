"""Products: what torch's own linear layer gives, whichever library computes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from qwendet.model import product as product_module
from qwendet.model.product import maker, product

CPU_INFO = {"Intel": "vendor_id\t: GenuineIntel\n", "other": "vendor_id\t: AuthenticAMD\n"}


@pytest.fixture(params=["Intel", "other"])
def made_by(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "cpuinfo").write_text(CPU_INFO[request.param], encoding="utf-8")
    monkeypatch.setattr(product_module, "CPU_INFO", tmp_path / "cpuinfo")
    maker.cache_clear()
    yield request.param
    maker.cache_clear()


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 32, 33, 400])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_product__is_linear(made_by: str, rows: int, has_bias: bool, dtype: torch.dtype) -> None:
    assert maker() == made_by
    generator = torch.Generator().manual_seed(0)
    given, columns, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, 1, 8), (30, 8), (30,))
    )
    found = product(given, columns, bias if has_bias else None)
    torch.testing.assert_close(found, F.linear(given, columns, bias if has_bias else None))


def test_product__takes_columns_of_any_layout(made_by: str) -> None:
    for count in (6, 60):
        rows, columns = torch.randn(count, 8), torch.randn(8, 30)
        torch.testing.assert_close(product(rows, columns.T), rows @ columns)
