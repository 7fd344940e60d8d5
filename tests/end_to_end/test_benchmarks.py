"""Benchmarks still run: the quick ones at their smallest, and what others make of their measurements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import family_parity, infer, serve, train_step

Run = Callable[[Any, list[str]], dict[str, Any]]


@pytest.fixture
def figures_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a benchmark as ``python -m`` does; what it wrote as JSON."""

    def run(benchmark: Any, options: list[str]) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["benchmark", *options, "--json", str(tmp_path / "figures.json")])
        benchmark.main()
        figures: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
        return figures

    return run


@pytest.mark.usefixtures("float64_is_kept")
@pytest.mark.parametrize(
    "name", ["Qwen2-VL-2B-Instruct", "Qwen2.5-VL-7B-Instruct", "Qwen3-VL-4B-Instruct", "Qwen3.5-0.8B"]
)
def test_family_parity__holds(
    figures_of: Run, small_model: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / name).symlink_to(small_model(name))
    ((_, figures),) = figures_of(family_parity, [str(tmp_path / "published")]).items()
    assert figures.pop("text_equal") is True
    assert figures.pop("inputs_equal") is True
    assert figures.keys() == {"loss", "gradient", "logits", "positions"}
    assert max(figures.values()) < 1e-11


def test_infer__runs_at_its_smallest(figures_of: Run, shared: Path) -> None:
    figures = figures_of(infer, ["--rounds", "1", "--tokens", "2"])
    wanted = {"head_over_text", "text_over_generate_b1", "text_over_generate_b8", "text_b8_over_generate_b1"}
    assert wanted <= figures.keys()
    assert min(figures.values()) > 0


def test_serve__no_answer_is_wrong_at_its_smallest(figures_of: Run) -> None:
    """Under load, after broken requests, and through a kill."""
    figures = figures_of(serve, ["--images", "8", "--rounds", "1", "--malformed", "25"])
    assert {name: figures[name] for name in figures if "wrong" in name} == {
        "wrong_1": 0, "wrong_8": 0, "wrong_32": 0, "kill_wrong": 0,
    }  # fmt: skip
    assert (figures["malformed_refused"], figures["alive_after_malformed"]) == (25, True)
    assert figures["kill_answers"] == 16


def test_serve__a_wrong_answer_is_found() -> None:
    found = {"desc": "cat", "score": 0.9, "bbox_2d": [1.0, 2.0, 30.0, 40.0]}
    answer = {"width": 50, "detections": [found]}
    assert serve.is_right(answer, answer)
    for change in ({"desc": "dog"}, {"score": 0.89}, {"bbox_2d": [1.0, 2.0, 30.0, 40.2]}):
        assert not serve.is_right({"width": 50, "detections": [found | change]}, answer)
    assert not serve.is_right({"width": 50, "detections": []}, answer)


def taken(seconds: list[float], loss: float, peak: float) -> train_step.Run:
    """What a way tells of steps of ten tokens each."""
    tokens = [10] * len(seconds)
    return {
        "seconds": seconds, "first": 9.0, "tokens": tokens, "padded": [12] * len(seconds),
        "loss": [loss] * len(seconds), "peak": peak,
    }  # fmt: skip


def test_train_step__ratios_are_those_of_neighbouring_steps() -> None:
    """A noise that slows both of a pair changes no ratio."""
    rounds = [
        {"plain": taken([4.0, 40.0, 6.0], 1.0, 10.0), "lm": taken([2.0, 20.0, 2.0], 1.0 + 1e-6, 3.0)},
        {"head": taken([3.3, 1.1, 2.2], 2.0, 3.5), "lm": taken([3.0, 1.0, 2.0], 1.0, 3.0)},
    ]
    found = train_step.figures(rounds)
    assert found["speed_ratio"] == 2.0
    assert found["memory_ratio"] == 0.3
    assert found["loss_difference"] == pytest.approx(1e-6)
    assert found["head_over_lm_per_token"] == pytest.approx(1.1)
    assert found["lm_seconds_per_step"] == 2.0
    assert found["lm_padding_share"] == pytest.approx(1 / 6)
