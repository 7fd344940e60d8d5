"""Chunked cross-entropy against torch's own: values, both gradients, every way that backward is called."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwendet.model import cross_entropy
from qwendet.model.cross_entropy import linear_cross_entropy

R, D, V = 23, 8, 50


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five chunks of rows in three tiles each, the last ones short."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", {"cpu": 5})
    monkeypatch.setattr(cross_entropy, "TILE_WORDS", {"cpu": 20})


def problem(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(R, D, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return rows, weight, torch.randint(V, (R,), generator=generator)


def reference(rows: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rows, weight), labels, reduction="none")


def test_values_and_gradients__are_torchs() -> None:
    rows, weight, labels = problem()
    total, nll = linear_cross_entropy(rows, weight, labels)
    expected = reference(rows, weight, labels)
    torch.testing.assert_close(nll, expected, rtol=0, atol=1e-12)
    assert total.item() == pytest.approx(expected.sum().item(), abs=1e-12)
    found = torch.autograd.grad(total * 0.37, [rows, weight])
    for one, other in zip(found, torch.autograd.grad(expected.sum() * 0.37, [rows, weight]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_float32__by_onednn_is_as_exact_as_torch() -> None:
    rows, weight, labels = problem(torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in (rows, weight)]
    truth = torch.autograd.grad(reference(*exact, labels).sum(), exact)
    total, nll = linear_cross_entropy(rows, weight, labels)
    torch.testing.assert_close(nll.double(), reference(*exact, labels), rtol=0, atol=1e-5)
    for one, other in zip(torch.autograd.grad(total, [rows, weight]), truth, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5)


def test_gradients__are_the_finite_differences() -> None:
    rows, weight, labels = problem()
    assert torch.autograd.gradcheck(lambda *args: linear_cross_entropy(*args)[0], (rows, weight, labels))


def test_backward__twice_gives_the_same_gradients() -> None:
    """The checks take the gradient of each term in turn from one graph."""
    rows, weight, labels = problem()
    total, _ = linear_cross_entropy(rows, weight, labels)
    first = torch.autograd.grad(total * 2, [rows, weight], retain_graph=True)
    kept = copy.deepcopy(first)
    second = torch.autograd.grad(total, [rows, weight])
    for one, before, other in zip(first, kept, second, strict=True):
        assert torch.equal(one, before)
        torch.testing.assert_close(one, other * 2, rtol=1e-12, atol=0)


def test_nll__carries_no_gradient() -> None:
    _, nll = linear_cross_entropy(*problem())
    assert not nll.requires_grad


@pytest.mark.parametrize("frozen", ["rows", "weight"])
def test_a_frozen_argument__costs_no_gradient(frozen: str) -> None:
    rows, weight, labels = problem()
    (rows if frozen == "rows" else weight).requires_grad_(False)
    total, _ = linear_cross_entropy(rows, weight, labels)
    kept = total.grad_fn.saved_tensors
    assert [tensor is None for tensor in kept] == [frozen == "rows", frozen == "weight"]
    total.backward()
    assert (rows.grad is None, weight.grad is None) == (frozen == "rows", frozen == "weight")


def test_no_grad__computes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a gradient is computed that nobody can ask for")

    monkeypatch.setattr(cross_entropy, "_add_by_label", refuse)
    monkeypatch.setattr(torch, "expm1", refuse)
    with torch.no_grad():
        total, _ = linear_cross_entropy(*problem())
    assert not total.requires_grad


def test_no_rows__give_a_differentiable_zero() -> None:
    rows, weight, labels = problem()
    total, nll = linear_cross_entropy(rows[:0], weight, labels[:0])
    assert (total.item(), nll.shape) == (0.0, (0,))
    total.backward()
    assert not weight.grad.any()


def test_large_logits__neither_overflow_nor_vanish() -> None:
    rows, weight, labels = problem(torch.float32, scale=200.0)
    total, nll = linear_cross_entropy(rows, weight, labels)
    expected = reference(rows, weight, labels)
    assert nll.max() > 500
    largest = (rows.abs() @ weight.abs().T).max().item()  # what a logit's summands add up to
    rounding = rows.shape[1] * torch.finfo(torch.float32).eps * largest
    assert rounding < 0.02
    torch.testing.assert_close(nll, expected, rtol=0, atol=rounding)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, [rows, weight]))


def test_a_tile__far_below_the_others_counts_for_nothing_and_keeps_its_label() -> None:
    """Relative to their own largest, all tiles look alike; 200 apart, float32 cannot hold their ratio."""
    rows, labels = torch.ones(2, 1, requires_grad=True), torch.tensor([0, 49])
    weight = torch.cat([torch.full((20, 1), -200.0), torch.full((30, 1), 200.0)]).requires_grad_()
    total, nll = linear_cross_entropy(rows, weight, labels)
    expected = reference(rows, weight, labels)
    rounding = 4 * 203.4 * torch.finfo(torch.float32).eps  # of the log-sum-exp, 203.4, and of the difference
    torch.testing.assert_close(nll, expected, rtol=0, atol=rounding)
    assert nll[0].item() == pytest.approx(403.4, abs=0.01)
    found = torch.autograd.grad(total, [rows, weight])
    wanted = torch.autograd.grad(expected.sum(), [rows, weight])
    for one, other, size in zip(
        found, wanted, (200, 1), strict=True
    ):  # a probability times weights, times rows
        torch.testing.assert_close(one, other, rtol=0, atol=size * rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision__is_as_near_to_the_truth_as_torch_is(dtype: torch.dtype) -> None:
    rows, weight, labels = problem(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in (rows, weight)]
    truth = torch.autograd.grad(reference(*exact, labels).sum(), exact)
    total, nll = linear_cross_entropy(rows, weight, labels)
    assert (total.dtype, nll.dtype) == (torch.float32, torch.float32)
    found = torch.autograd.grad(total, [rows, weight])
    usual = torch.autograd.grad(reference(rows, weight, labels).float().sum(), [rows, weight])
    for ours, torchs, exact_one in zip(found, usual, truth, strict=True):
        assert ours.dtype == dtype
        assert (ours - exact_one).norm() <= 2 * (torchs - exact_one).norm()


def test_float16__sums_of_many_rows_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", {"cpu": 1000})
    monkeypatch.setattr(cross_entropy, "TILE_WORDS", {"cpu": 1})
    rows = torch.full((3000, 1), 100.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.float16, requires_grad=True)
    total, _ = linear_cross_entropy(rows, weight, torch.zeros(3000, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(total / 3000, [weight])
    assert gradient.flatten().tolist() == pytest.approx([-50.0, 50.0], rel=1e-2)


def test_autocast__multiplies_in_its_type_and_returns_gradients_in_the_weights() -> None:
    rows, weight, labels = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, nll = linear_cross_entropy(rows, weight, labels)
        expected = reference(rows, weight, labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(nll, expected.float(), rtol=0, atol=0.05)
    assert (nll - reference(rows, weight, labels)).abs().max() > 1e-4
    assert {gradient.dtype for gradient in torch.autograd.grad(total, [rows, weight])} == {torch.float32}
