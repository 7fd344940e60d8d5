"""`train.evaluate_base`: the start is measured on the same samples, and leaves no trace."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from qwendet.cli.main import run
from qwendet.evaluation.command import evaluate_model
from qwendet.train import RunSummary, train
from tests.end_to_end.training.runs import STEPS, MakeConfig, assert_same, rows_of, stop_at, weights_of


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_new_head__the_base_answers_in_text_and_the_trained_model_in_both(
    finished: RunSummary, make_config: MakeConfig, scenes: Path, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "run", train={"evaluate_base": True, "preflight": "quick"})
    summary = train(config)
    assert summary.metrics is not None
    assert summary.before is not None
    history = read(tmp_path / "run" / "checkpoint-6" / "trainer_state.json")["log_history"]
    assert history[0]["step"] == 0, "boards begin with the base"
    assert history[0]["validation/text/AP50"] == summary.before["text/AP50"]
    assert {name.partition("/")[0] for name in summary.before} == {"text"}
    assert {name.partition("/")[0] for name in summary.metrics} == {"head", "text"}
    asked = [f"data.labels={json.dumps(config.data.labels)}", f"data.request='{config.data.request}'"]
    settings = ["model.device=cpu", "model.dtype=float32", "infer.max_new_tokens=16", *asked]
    alone = evaluate_model(Path("tiny-untrained"), scenes / "val.jsonl", overrides=settings)
    assert summary.before["text/AP50"] == alone.runs[0].metrics["AP50"]
    # Training is that of a run which measured nothing before.
    assert finished.final is not None
    assert summary.final is not None
    assert_same(weights_of(summary.final), weights_of(finished.final))
    assert rows_of(tmp_path / "run" / "checkpoint-6") == rows_of(finished.output_dir / "checkpoint-6")


def test_checkpoint__is_measured_by_its_own_head(make_config: MakeConfig, tmp_path: Path) -> None:
    """With a learning rate at which nothing is learnt, before is after."""
    sizes = {"hidden_size": None, "num_layers": None, "num_heads": None}
    summary = train(
        make_config(
            tmp_path / "run",
            model={"path": "tiny"},
            detection=sizes,
            train={
                "evaluate_base": True,
                "max_steps": 1,
                "learning_rate": 1e-12,
                "head_learning_rate": 1e-12,
            },
        )
    )
    assert summary.before is not None
    assert summary.metrics is not None
    after = {name: value for name, value in summary.metrics.items() if value >= 0}
    assert summary.before == pytest.approx(after, abs=1e-6)
    assert {name.partition("/")[0] for name in summary.before} == {"head"}


def test_resume__tells_what_was_measured_at_the_start(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path / "run", train={"evaluate_base": True}, infer={"max_new_tokens": 4})
    with monkeypatch.context() as patch:
        stop_at(patch, 1, signal.SIGTERM)
        assert train(config).stopped_by == "SIGTERM"
    (state,) = (tmp_path / "run").glob("checkpoint-*/trainer_state.json")
    (row,) = (row for row in read(state)["log_history"] if row["step"] == 0)
    resumed = train(config, resume=True)
    assert resumed.before is not None
    assert resumed.before["text/AP50"] == row["validation/text/AP50"]
    assert {f"validation/{name}" for name in resumed.before} == row.keys() - {"step", "epoch"}


def test_resume__of_a_run_whose_start_was_not_measured_says_so(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is in memory has been trained: it is no base."""
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS - 2, signal.SIGTERM)
        train(make_config(tmp_path / "run"))
    later = make_config(tmp_path / "run", train={"evaluate_base": True}, infer={"max_new_tokens": 4})
    assert train(later, resume=True).before == {}
    assert "the base was not measured when this run began" in caplog.text


def test_command__prints_before_and_after(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(
        f"model: {{path: tiny-untrained, device: cpu}}\ndata: {{train: {scenes}/train.jsonl, val:"
        f" {scenes}/val.jsonl}}\ntrain: {{max_steps: 1, preflight: off, evaluate_base: true}}\n"
        "infer: {max_new_tokens: 4}\n",
        encoding="utf-8",
    )
    with pytest.raises(SystemExit) as ended:
        run(["train", str(tmp_path / "c.yaml")])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert rows["metric"] == ["before", "after", "difference"]
    assert rows["text/AP50"] == ["0.0000", "0.0000", "0.0000"]
    assert (rows["head/AP50"][0], rows["head/AP50"][2]) == ("–", "–")
