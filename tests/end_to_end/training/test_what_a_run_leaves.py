"""The main job: what `train` leaves behind, and what it refuses before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.trainer_pt_utils import safe_globals

from qwendet.demo.shapes import DEMO
from qwendet.errors import ConfigError, EnvironmentLacksError, QwendetError
from qwendet.loader import config_of_checkpoint
from qwendet.model.precision import GROUPS
from qwendet.train import RunSummary, train
from tests.end_to_end.training.runs import (
    HEAD_OFF,
    TERMS,
    MakeConfig,
    assert_same,
    rows_of,
    shape_of,
    weights_of,
)


def test_train__leaves_checkpoints_final_predictions_metrics_and_tensorboard(finished: RunSummary) -> None:
    run = finished.output_dir
    assert shape_of(run) == ["checkpoint-3", "checkpoint-6", "eval", "final", "metrics.json", "tensorboard"]
    assert [path.name for path in (run / "eval").iterdir()] == ["predictions.jsonl"]
    assert finished.final == run / "final"
    assert finished.stopped_by == ""
    assert finished.metrics == json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert finished.metrics is not None
    assert {name.partition("/")[0] for name in finished.metrics} == {"head"}
    assert 0 <= finished.metrics["head/AP50"] <= 1
    assert_same(weights_of(run / "final"), weights_of(run / "checkpoint-6"))


def test_train__leaves_no_pickle_that_has_to_be_trusted(finished: RunSummary) -> None:
    run = finished.output_dir
    assert [str(path) for path in run.rglob("*.bin")] == []
    assert list(run.rglob(".*")) == []
    for path in (*run.rglob("*.pt"), *run.rglob("*.pth")):
        with safe_globals():  # numpy's random state, as the Trainer itself allows it
            torch.load(path, weights_only=True)


def test_train__every_term_and_learning_rate_is_in_tensorboard(finished: RunSummary) -> None:
    events = EventAccumulator(str(finished.output_dir / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    rows = rows_of(finished.output_dir / "checkpoint-6")
    for name in (*(f"loss/{term}" for term in TERMS), *(f"learning_rate/{group}" for group in GROUPS)):
        assert name in tags
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(row["step"], pytest.approx(row[name])) for row in rows]


def test_train__the_logged_total_is_the_weighted_sum_of_the_logged_terms(finished: RunSummary) -> None:
    rows = rows_of(finished.output_dir / "checkpoint-6")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        terms = {term: row[f"loss/{term}"] for term in TERMS}
        detection = 2 * terms["class"] + 5 * terms["l1"] + 2 * terms["giou"]
        text = 0.7 * terms["lm"] + 0.3 * terms["teacher"] + 1.0 * terms["student"]
        assert terms["detection"] == pytest.approx(detection, rel=1e-5)
        assert terms["total"] == pytest.approx(text + 1.5 * terms["detection"], rel=1e-5)
        assert row["loss"] == pytest.approx(terms["total"], rel=1e-5)
    assert rows[-1]["loss/total"] < rows[0]["loss/total"]
    assert sum(row["loss/teacher"] > 0 for row in rows) >= 3


def test_train__the_logged_learning_rates_are_those_of_the_step(finished: RunSummary) -> None:
    rows = rows_of(finished.output_dir / "checkpoint-6")
    for row in rows:
        assert row["learning_rate/vision"] == row["learning_rate"]
        assert row["learning_rate/head"] == pytest.approx(row["learning_rate"] / 2)
    assert rows[-1]["learning_rate/head"] > 0, "the last step was not taken at rate 0"


def test_train__logging_every_third_step_gives_means(
    make_config: MakeConfig, tmp_path: Path, finished: RunSummary
) -> None:
    train(make_config(tmp_path / "run", train={"logging_steps": 3, "evaluate": False}))
    each, third = (rows_of(run / "checkpoint-6") for run in (finished.output_dir, tmp_path / "run"))
    assert [row["step"] for row in third] == [3, 6]
    for index, row in enumerate(third):
        for term in TERMS:
            steps = [each[3 * index + at][f"loss/{term}"] for at in range(3)]
            assert row[f"loss/{term}"] == pytest.approx(sum(steps) / 3)


def test_train__without_evaluation_nothing_is_predicted(make_config: MakeConfig, tmp_path: Path) -> None:
    for name, sections in (("a", {"train": {"evaluate": False}}), ("b", {"data": {"val": None}})):
        short = {"max_steps": 1} | sections.pop("train", {})
        summary = train(make_config(tmp_path / name, train=short, **sections))
        assert summary.metrics is None
        assert shape_of(tmp_path / name) == ["checkpoint-1", "final", "tensorboard"]


def test_config_of_checkpoint__is_the_resolved_config_of_the_run(
    finished: RunSummary, make_config: MakeConfig
) -> None:
    assert finished.final is not None
    stored = config_of_checkpoint(finished.final)
    given = make_config(finished.output_dir, train={"preflight": "quick"})
    assert stored.train == given.train.model_copy(update={"autocast": "none"}), "auto, resolved"
    assert stored.loss == given.loss
    assert stored.model.path == str(finished.final)
    assert (stored.model.dtype, stored.model.attn_implementation) == ("float32", "sdpa")
    assert stored.data.labels == DEMO.labels
    assert stored.data.max_pixels == 224 * 224


def test_train__an_output_directory_that_holds_a_run_is_refused(
    finished: RunSummary, make_config: MakeConfig
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.output_dir.rglob("*")}
    with pytest.raises(ConfigError) as caught:
        train(make_config(finished.output_dir))
    assert str(caught.value) == (
        f"{finished.output_dir}: the output directory already holds a run"
        " (continue it with --resume, or choose another with --set train.output_dir=DIR)"
    )
    assert {path: path.stat().st_mtime_ns for path in finished.output_dir.rglob("*")} == before


def test_train__an_output_directory_that_is_a_file_is_refused(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError) as caught:
        train(make_config(tmp_path / "run"))
    assert str(caught.value).startswith(
        f"train.output_dir: expected a folder, got the file {tmp_path / 'run'}"
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"autocast": "fp16"}, "train.autocast fp16 needs a GPU"),
        ({"optimizer": "adamw_bnb_8bit"}, "adamw_bnb_8bit needs the package bitsandbytes"),
    ],
)
def test_train__what_the_machine_lacks_is_said_before_anything_is_written(
    settings: dict[str, str], named: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentLacksError, match=named):
        train(make_config(tmp_path / "run", train=settings))
    assert list(tmp_path.iterdir()) == []


def test_train__detection_off_with_boxes_in_the_data_is_refused(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Bug 4 of the original scripts: `detection_enabled: false` while the data set was full of boxes."""
    with pytest.raises(QwendetError, match=r"detection.enabled is false, but train.jsonl has"):
        train(make_config(tmp_path / "run", detection=HEAD_OFF["detection"]))
    assert list(tmp_path.iterdir()) == []
