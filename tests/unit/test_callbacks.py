"""What the progress line says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from qwendet.callbacks import ProgressReport
from qwendet.progress import Advance


def test_progress__tells_the_loss_and_the_share_of_time_spent_waiting_for_data() -> None:
    shown: list[tuple[int, str]] = []

    @contextmanager
    def tracker(description: str, total: int) -> Iterator[Advance]:
        yield lambda finished, text: shown.append((finished, text))

    report = ProgressReport(tracker)
    state: Any = SimpleNamespace(max_steps=4, global_step=0)
    control: Any = SimpleNamespace(should_log=False)
    report.on_train_begin(None, state, control)
    report.on_log(None, state, control, {"loss/total": 1.25, "time/waiting_for_data": 0.042})
    state.global_step = 1
    report.on_step_end(None, state, control)
    report.close()
    assert shown == [(0, ""), (1, "total 1.250 (waiting for data 4%)")]
