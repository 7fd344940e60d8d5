"""`best/`, `train.early_stopping` and `train.ema` in whole runs, stopped ones and shared ones."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import qwendet.training.trainer
from qwendet.cli.main import run
from qwendet.errors import CheckpointError
from qwendet.evaluation.command import evaluate_model
from qwendet.evaluation.validation import Validation
from qwendet.loading.manifest import read_manifest
from qwendet.train import RunSummary, train
from qwendet.training.best import Best, find_best
from tests.end_to_end.training.runs import STEPS, MakeConfig, assert_same, stop_at, weights_of

WATCHED = {"eval_steps": 2, "ema": {"decay": 0.5}, "lr_scheduler": "constant"}
OF_TINY = {"hidden_size": None, "num_layers": None, "num_heads": None}


def watched(make_config: MakeConfig, folder: Path, **train: Any) -> Any:
    return make_config(folder, model={"path": "tiny"}, detection=OF_TINY, train=WATCHED | train)


@pytest.fixture(scope="module")
def kept(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """A run with an average and a best model; read only."""
    return train(watched(make_config, tmp_path_factory.mktemp("best") / "run"))


def measured(run: Path) -> list[tuple[int, float]]:
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text(encoding="utf-8"))
    name = "validation/head/AP"
    return [(row["step"], row[name]) for row in state["log_history"] if name in row]


def test_best__is_a_whole_checkpoint_that_eval_measures_the_same(kept: RunSummary, scenes: Path) -> None:
    history = measured(kept.output_dir)
    assert [step for step, _ in history] == [2, 4, 6]
    step, value = max(history, key=lambda row: row[1])
    assert value > 0
    assert kept.best == find_best(kept.output_dir) == Best(step, "head/AP", value)
    assert read_manifest(kept.output_dir / "best").step == step
    (again,) = evaluate_model(kept.output_dir / "best", scenes / "val.jsonl").runs
    assert again.metrics["AP"] == value
    assert kept.metrics is not None
    assert kept.metrics["head/AP"] == history[-1][1], "the last evaluation is that of the end"


def test_ema__is_what_final_holds_and_a_checkpoint_goes_on_without_it(kept: RunSummary) -> None:
    final, going_on = (weights_of(kept.output_dir / name) for name in ("final", f"checkpoint-{STEPS}"))
    moved = [name for name, tensor in final.items() if not torch.equal(tensor, going_on[name])]
    assert len(moved) > len(final) / 2
    stored = kept.output_dir / f"checkpoint-{STEPS}" / "ema" / "weights.safetensors"
    averages = load_file(stored)
    assert int(averages.pop("steps")) == STEPS
    assert_same({name: final[name] for name in averages}, averages)


@pytest.mark.parametrize("done", [2, 3])
def test_resume__keeps_average_and_best_bitwise(
    done: int, kept: RunSummary, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = watched(make_config, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(patch, done, signal.SIGTERM)
        assert train(config).stopped_by == "SIGTERM"
    assert train(config, resume=True).best == kept.best
    assert measured(tmp_path / "run") == measured(kept.output_dir)
    for name in ("best", "final", f"checkpoint-{STEPS}"):
        found, wanted = (
            read_manifest(folder / name).parameters for folder in (tmp_path / "run", kept.output_dir)
        )
        assert found == wanted, name


def test_resume__of_a_run_that_had_ended_takes_no_step(
    kept: RunSummary, make_config: MakeConfig, tmp_path: Path
) -> None:
    """In the middle of an epoch, where the Trainer by itself would take one more."""
    shutil.copytree(kept.output_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    assert train(watched(make_config, tmp_path / "run"), resume=True).metrics == kept.metrics
    found, wanted = (read_manifest(folder / "final") for folder in (tmp_path / "run", kept.output_dir))
    assert (found.step, found.parameters) == (STEPS, wanted.parameters)


def test_resume__with_another_average_is_refused(
    kept: RunSummary, make_config: MakeConfig, tmp_path: Path
) -> None:
    shutil.copytree(kept.output_dir / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    with pytest.raises(CheckpointError, match=r"train.ema.decay is 0.9, but the run was started with 0.5"):
        train(watched(make_config, tmp_path / "run", ema={"decay": 0.9}), resume=True)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations that give 0.5, 0.4, 0.3 … in place of what they measure."""
    values = iter((5 - number) / 10 for number in range(STEPS))
    sound = qwendet.training.trainer.validate

    def validate(*args: Any, **kwargs: Any) -> Validation:
        return replace(sound(*args, **kwargs), metrics={"head/AP": next(values)})

    monkeypatch.setattr(qwendet.training.trainer, "validate", validate)


@pytest.mark.usefixtures("scripted")
def test_early_stopping__ends_with_a_checkpoint_and_the_best(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"eval_steps": 1, "early_stopping": {"patience": 3}, "evaluate": False, "save_steps": 100}
    config = make_config(tmp_path / "run", train=settings)
    summary = train(config)
    assert summary.best == Best(1, "head/AP", 0.5)
    assert summary.final is not None
    assert read_manifest(summary.final).step == 4
    assert (
        "train.early_stopping ends the run after step 4: head/AP has not risen by more than 0 in 3"
        in caplog.text
    )
    assert "validation head/AP has fallen 3 times in a row (0.5000, 0.4000, 0.3000, 0.2000)" in caplog.text
    shutil.rmtree(summary.final)
    assert train(config, resume=True).best == summary.best, "it is still over"
    assert read_manifest(summary.final).step == 4


def test_last_lines__name_the_best_and_the_next_command(
    kept: RunSummary, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, scenes: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr("qwendet.train.train", lambda config, resume: kept)
    monkeypatch.chdir(kept.output_dir.parent)
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{train: {scenes}/train.jsonl, val: {scenes}/val.jsonl}}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        run(["train", str(config)])
    assert kept.best is not None
    best, shown = kept.best, " ".join("".join(capsys.readouterr()).split())
    assert (
        f"The model is in run/final. The best is in run/best: step {best.step}, validation head/AP"
        f" {best.value:.4f}. Next: qwendet eval run/best" in shown
    )
