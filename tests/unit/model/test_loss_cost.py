"""What the checks of the loss cost on a large model: passes through the language model, counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from qwendet.checks.preflight import QUICK, run_loss_checks
from qwendet.checks.subject import temporary_subject
from qwendet.config.schema import Config
from qwendet.loader import Bundle


class Count:
    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0


@pytest.fixture
def count(bundle: Bundle) -> Iterator[Count]:
    """Rows that pass the last layer of the language model, forwards and backwards."""
    found, layer = Count(), bundle.detector.vlm.model.language_model.layers[-1]

    def forward(module: object, args: object, kwargs: object, output: object) -> None:
        states = output[0] if isinstance(output, tuple) else output
        assert torch.is_tensor(states)
        rows = len(states) if states.ndim == 3 else 1
        found.forwards += rows
        if states.requires_grad:
            states.register_hook(lambda _: setattr(found, "backwards", found.backwards + rows))

    handle = layer.register_forward_hook(forward, with_kwargs=True)
    yield found
    handle.remove()


def test_cost__of_all_but_overfit(tiny_config: Config, bundle: Bundle, count: Count) -> None:
    with temporary_subject(tiny_config, bundle) as subject:
        results, _ = run_loss_checks(subject, with_overfit=False)
    assert [result.id for result in results if result.status == "skip"] == ["loss.overfit"]
    assert [result for result in results if result.status == "fail"] == []
    assert count.forwards == 4 + 4 + 1  # 2.25 of the four samples
    assert count.backwards <= 2 * 4


def test_cost__of_the_quick_part(tiny_config: Config, bundle: Bundle, count: Count) -> None:
    with temporary_subject(tiny_config, bundle) as subject:
        results, _ = run_loss_checks(subject, only=QUICK)
    assert [result.id for result in results] == list(QUICK)
    assert {result.status for result in results} == {"pass"}
    assert count.forwards == 1
    assert count.backwards <= 2 * 4
