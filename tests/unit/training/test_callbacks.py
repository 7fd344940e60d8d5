"""What the progress line says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from qwendet.progress import Advance, shown_by
from qwendet.training.callbacks import ProgressReport


def test_progress__tells_the_loss_and_the_share_of_time_spent_waiting_for_data() -> None:
    shown: list[tuple[int, str]] = []

    @contextmanager
    def tracker(description: str, total: int) -> Iterator[Advance]:
        yield lambda finished, text: shown.append((finished, text))

    report = ProgressReport()
    state: Any = SimpleNamespace(max_steps=4, global_step=0)
    control: Any = SimpleNamespace(should_log=False)
    with shown_by(tracker):
        report.on_train_begin(None, state, control)
    row = {"loss/total": 1.25, "loss/lm": 0.5, "loss/l1": 2.0, "time/waiting_for_data": 0.042}
    report.on_log(None, state, control, row | {"throughput/samples_per_second": 12.345})
    state.global_step = 1
    report.on_step_end(None, state, control)
    report.on_log(None, state, control, {"validation/head/AP50": 0.5})
    report.close()
    loss = "total 1.250 lm 0.500 (12.3 samples/s, waiting for data 4%)"
    assert shown == [(0, ""), (1, loss)]


def test_progress__says_where_a_resumed_run_has_no_step_left(caplog: pytest.LogCaptureFixture) -> None:
    control: Any = SimpleNamespace(should_log=False)
    for step, is_said in ((7, False), (8, True), (28, True)):
        caplog.clear()
        report = ProgressReport()
        report.on_train_begin(None, SimpleNamespace(max_steps=8, global_step=step), control)  # type: ignore[arg-type]
        report.close()
        assert ("no step is left" in caplog.text) == is_said
