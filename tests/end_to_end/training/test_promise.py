"""The promise: what is served is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwendet.errors import ConfigError
from qwendet.infer import infer
from qwendet.train import RunSummary, train
from tests.end_to_end.training.runs import HEAD_OFF, MakeConfig, rows_of


def assert_promise(run: Path, scenes: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Predictions by the model in memory and by the saved one are the same, line for line."""
    infer(run / "final", [scenes / "val.jsonl"], output=tmp_path / "served.jsonl")
    served = (tmp_path / "served.jsonl").read_text(encoding="utf-8")
    trained = (run / "eval" / "predictions.jsonl").read_text(encoding="utf-8")
    assert served.splitlines() == trained.splitlines()
    assert served == trained
    return [json.loads(line) for line in served.splitlines()]


def test_promise__evaluation_in_training_is_what_infer_gives(
    finished: RunSummary, scenes: Path, tmp_path: Path
) -> None:
    lines = assert_promise(finished.output_dir, scenes, tmp_path)
    assert [line["image"] for line in lines] == [f"images/val_{index:05d}.png" for index in range(6)]
    assert {item["source"] for line in lines for item in line["detections"]} == {"head"}
    for line in lines:
        scores = [item["score"] for item in line["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) <= 100
        assert all(score >= 0.01 for score in scores)
        for item in line["detections"]:
            x1, y1, x2, y2 = item["bbox_2d"]
            assert 0 <= x1 < x2 <= line["width"]
            assert 0 <= y1 < y2 <= line["height"]


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({"infer": {"mode": "text"}}, id="text"),
        pytest.param({"infer": {"mode": "both"}}, id="both"),
        pytest.param({"train": {"autocast": "bf16"}}, id="autocast"),
        pytest.param({"model": {"dtype": "bfloat16"}}, id="bfloat16"),
        pytest.param(
            {
                "model": {"dtype": "bfloat16"},
                "train": {"vision_learning_rate": 0.0, "merger_learning_rate": 0.0},
                "infer": {"mode": "both"},
            },
            id="bfloat16 and frozen parts",
        ),
        pytest.param({"model": {"attn_implementation": "eager"}}, id="eager"),
        pytest.param({"model": {"gradient_checkpointing": True}}, id="gradient checkpointing"),
        pytest.param(
            {"data": {"max_pixels": 8000, "allow": ("config.images.small_objects",)}}, id="pixel limit"
        ),
    ],
)
def test_promise__in_other_modes(
    sections: dict[str, dict[str, Any]], make_config: MakeConfig, scenes: Path, tmp_path: Path
) -> None:
    short = {"max_steps": 2, "batch_size": 2} | sections.pop("train", {})
    train(make_config(tmp_path / "run", train=short, **sections))
    assert len(assert_promise(tmp_path / "run", scenes, tmp_path)) == 6


@pytest.mark.parametrize("mode", [None, "text"])
def test_promise__without_a_head(
    mode: str | None, make_config: MakeConfig, scenes: Path, tmp_path: Path
) -> None:
    config = make_config(
        tmp_path / "run",
        **HEAD_OFF,
        train={"max_steps": 2},
        infer={"mode": mode or "auto", "max_new_tokens": 16},
    )
    summary = train(config)
    assert_promise(tmp_path / "run", scenes, tmp_path)
    assert list((tmp_path / "run").rglob("detection_head*")) == []
    for row in rows_of(tmp_path / "run" / "checkpoint-2"):
        assert {name for name in row if name.startswith("loss/")} == {
            "loss/lm",
            "loss/teacher",
            "loss/student",
            "loss/total",
        }
        assert "learning_rate/head" not in row
    assert summary.metrics is not None
    assert {name.partition("/")[0] for name in summary.metrics} == {"text"}
    with pytest.raises(ConfigError, match="mode is head, but the model has no head"):
        infer(tmp_path / "run" / "final", [scenes / "val.jsonl"], mode="head")


def test_infer__settings_that_the_weights_depend_on_cannot_be_overridden(
    finished: RunSummary, scenes: Path, tmp_path: Path
) -> None:
    assert finished.final is not None
    for override in ("data.request=Find {labels}.", "data.max_pixels=9999", "model.path=tiny-untrained"):
        with pytest.raises(ConfigError, match="but the checkpoint was trained with"):
            infer(
                finished.final,
                [scenes / "val.jsonl"],
                output=tmp_path / "out.jsonl",
                overrides=[override],
            )
    assert list(tmp_path.iterdir()) == []
