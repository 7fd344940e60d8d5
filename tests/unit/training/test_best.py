"""The best evaluation, when to stop, and the average, by numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from qwendet.config.load import build_config
from qwendet.config.schema import Config, EarlyStoppingConfig, EmaConfig
from qwendet.errors import CheckpointError, ConfigError
from qwendet.training.best import Best, evaluations, falling, find_best, is_best, is_over
from qwendet.training.ema import WeightAverage


def seen(*values: float) -> list[Best]:
    return [Best(step, "head/AP", value) for step, value in enumerate(values, 1)]


def test_evaluations__are_those_during_training() -> None:
    rows = [{"step": step, "validation/head/AP": value} for step, value in enumerate((0.9, 0.1, 0.3))]
    history = [rows[0], rows[1], {"step": 2, "loss/total": 1.0}, rows[2]]
    assert evaluations(history, "head/AP") == seen(0.1, 0.3)
    assert evaluations(history, "text/AP") == []


def test_is_best__takes_the_first_of_equals() -> None:
    assert [is_best(seen(*values)) for values in ((0.0,), (0.0, 0.0), (0.2, 0.1), (0.1, 0.2))] == [
        True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "gain", "over"),
    [
        ((0.1, 0.2, 0.2, 0.1), 0.0, True),
        ((0.1, 0.2, 0.2), 0.0, False),
        ((0.1, 0.14, 0.18), 0.05, False),  # 0.18 is 0.08 above the last gain
        ((0.1, 0.14, 0.14), 0.05, True),
        ((), 0.0, False),
    ],
)
def test_is_over__after_two_evaluations_without_a_gain(
    values: tuple[float, ...], gain: float, over: bool
) -> None:
    assert is_over(seen(*values), EarlyStoppingConfig(patience=2, min_gain=gain)) is over
    assert not is_over(seen(*values), None)


def test_falling__is_said_at_the_third_fall_and_once() -> None:
    assert falling(seen(0.4, 0.5, 0.3, 0.2, 0.1)).startswith(
        "validation head/AP has fallen 3 times in a row (0.5000, 0.3000, 0.2000, 0.1000): the model may be"
        " learning its training samples by heart"
    )
    quiet = [
        (0.4, 0.5, 0.3, 0.2),  # two falls
        (0.4, 0.5, 0.3, 0.2, 0.2),
        (0.5, 0.4, 0.3, 0.2, 0.1),  # the fourth: it was said at the third
    ]
    assert [falling(seen(*values)) for values in quiet] == [""] * 3


def test_find_best__what_cannot_be_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_best(tmp_path) is None
    (tmp_path / "best").mkdir()
    Best(3, "head/AP", 0.25).write(tmp_path / "best")
    assert find_best(tmp_path) == Best(3, "head/AP", 0.25)
    (tmp_path / "best" / "best.json").write_text("{}")
    assert find_best(tmp_path) is None
    assert "best.json cannot be read" in caplog.text


# The moving average


def model() -> nn.Module:
    own = nn.Module()
    own.head, own.body, own.frozen = nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)
    own.frozen.requires_grad_(False)
    return own


def step(average: WeightAverage, own: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.fill_(value)
    nothing: Any = SimpleNamespace()
    average.on_step_end(nothing, nothing, nothing)


def test_ema__is_the_recurrence_and_exchanged_bitwise() -> None:
    own = model()
    average = WeightAverage(own, EmaConfig(decay=0.25))
    expected = 1.0
    step(average, own, 1.0)
    for number, value in enumerate((3.0, 7.0, 2.0), 1):
        step(average, own, value)
        decay = min(0.25, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        assert own.body.weight[0, 0].item() == pytest.approx(expected, rel=1e-6)
        assert own.frozen.weight[0, 0].item() == 2.0
    assert all(bool((parameter == 2.0).all()) for parameter in own.parameters())


def test_ema__of_the_head_leaves_the_rest(tmp_path: Path) -> None:
    own = model()
    average = WeightAverage(own, EmaConfig(decay=0.5, parts="head_and_adapters"))
    step(average, own, 1.0)
    step(average, own, 3.0)
    with average.in_place():
        assert (own.head.bias.item(), own.body.bias.item()) == (pytest.approx(2.6364, abs=1e-4), 3.0)
    average.save(tmp_path, writes=True)
    again = WeightAverage(model(), EmaConfig(decay=0.5, parts="head_and_adapters"))
    again.load(tmp_path)
    kept, found = average._state(), again._state()
    assert kept.keys() == found.keys() == {"head.weight", "head.bias", "steps"}
    assert all(torch.equal(kept[name], found[name]) for name in kept)
    with pytest.raises(CheckpointError, match="the moving average's weight body"):
        WeightAverage(model(), EmaConfig()).load(tmp_path)


# Settings that contradict each other


def config(**sections: dict[str, Any]) -> Config:
    train = {"eval_steps": 2} | sections.pop("train", {})
    values = {"data": {"val": "val.jsonl", "labels": ["a"]}, "train": train} | sections
    return build_config(values, "test")


@pytest.mark.parametrize(
    ("sections", "message", "fix"),
    [
        ({"train": {"best_metric": "head/mAP"}}, "head/mAP, which no evaluation logs", "set it to head/AP,"),
        ({"train": {"best_metric": "text/AP"}}, "text/AP, which no evaluation logs", "set it to head/AP,"),
        ({"train": {"best_metric": "loss/total"}}, "loss/total, which no", "another of head/AP, head/AP50"),
        (
            {"train": {"best_metric": "head/AP", "eval_steps": None}},
            "train.best_metric is set, but train.eval_steps is null",
            "set train.eval_steps",
        ),
        (
            {"train": {"early_stopping": {}, "eval_steps": None}},
            "train.early_stopping is set, but train.eval_steps is null",
            "set train.eval_steps",
        ),
        (
            {"train": {"ema": {"parts": "head_and_adapters"}}, "detection": {"enabled": False}},
            "neither head nor adapter",
            "set it to all",
        ),
        (
            {"train": {"ema": {}, "weights": "bfloat16", "optimizer": "stable_adamw"}},
            "rounds a step of an average away",
            "head_and_adapters",
        ),
        ({"train": {"ema": {"decay": 1.0}}}, "expected a number less than 1, got 1.0", ""),
        (
            {"train": {"early_stopping": {"patience": 0}}},
            "expected a number greater than or equal to 1, got 0",
            "",
        ),
    ],
)
def test_config__what_no_run_could_do_is_refused(
    sections: dict[str, dict[str, Any]], message: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**sections)
    (problem,) = caught.value.problems
    assert message in problem.what
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("sections", "metric"),
    [
        ({}, "head/AP"),
        ({"infer": {"mode": "both"}, "train": {"best_metric": "validation/text/AP50"}}, "text/AP50"),
        ({"infer": {"mode": "text"}}, "text/AP"),
        ({"detection": {"enabled": False}}, "text/AP"),
    ],
)
def test_best_metric__is_that_of_what_predicts(sections: dict[str, dict[str, Any]], metric: str) -> None:
    assert config(**sections).best_metric() == metric
