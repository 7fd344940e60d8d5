"""A run that is stopped and goes on ends, bit for bit, as one that was not."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.demo.shapes import DEMO
from qwendet.errors import CheckpointError, ConfigError
from qwendet.train import RunSummary, train
from qwendet.training.build import create_trainer
from tests.end_to_end.training.runs import (
    STEPS,
    MakeConfig,
    assert_same,
    parameters_of,
    rows_of,
    shape_of,
    stop_at,
    weights_of,
)


def test_resume__gives_bitwise_what_the_uninterrupted_run_gave(
    finished: RunSummary, make_config: MakeConfig, tmp_path: Path
) -> None:
    """Step 3 of 5 in the first epoch: order of samples, teachers, optimizer and schedule all go on."""
    shutil.copytree(finished.output_dir / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    trainer = create_trainer(make_config(tmp_path / "run"))
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert_same(parameters_of(trainer.bundle.detector), weights_of(finished.output_dir / "final"))
    found, wanted = (rows_of(run / "checkpoint-6") for run in (tmp_path / "run", finished.output_dir))
    assert found == wanted


def test_resume__asks_the_same_labels_and_repeats_the_same_samples(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    data = {"labels_per_request": 4, "repeat_rare": 0.6}
    whole, part = (create_trainer(make_config(tmp_path / name, data=data)) for name in ("whole", "part"))
    assert len(whole.train_dataset) > 20
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    part.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    assert_same(parameters_of(part.bundle.detector), parameters_of(whole.bundle.detector))


def test_resume__in_the_middle_of_a_shard_and_with_other_workers_is_bitwise(
    make_config: MakeConfig, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture of Parquet shards of seven samples; step 3 of 6 is in an epoch and in a shard."""
    monkeypatch.setattr("qwendet.data.formats.shard_writer.SHARD_SAMPLES", 7)
    convert_dataset(scenes / "train.jsonl", tmp_path / "shards", Conversion(target="parquet"))
    first, second, third = (str(tmp_path / "shards" / f"train-00000{number}.parquet") for number in range(3))
    data = {
        "train": [{"path": first, "weight": 1.5}, {"path": second, "weight": 0.5}, third],
        "augment": "light",
    }
    whole = create_trainer(make_config(tmp_path / "whole", data=data))
    assert len(whole.train_dataset) == 7 + 4 + 4 + 6
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    part = create_trainer(make_config(tmp_path / "part", data=data | {"num_workers": 2}))
    part.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    assert_same(parameters_of(part.bundle.detector), parameters_of(whole.bundle.detector))


def test_samples_that_name_the_label_set__train_bitwise_as_those_that_name_none(
    finished: RunSummary, scenes: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    named = scenes / "named.jsonl"
    with named.open("w", encoding="utf-8") as file:
        for line in (scenes / "train.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            record.get("student", record)["labels"] = list(DEMO.labels)
            file.write(json.dumps(record) + "\n")
    trainer = create_trainer(make_config(tmp_path / "run", data={"train": str(named)}))
    trainer.train()
    assert_same(parameters_of(trainer.bundle.detector), weights_of(finished.output_dir / "final"))


@pytest.mark.parametrize(
    ("number", "done", "preflight"),
    [
        pytest.param(signal.SIGTERM, 1, "quick", id="SIGTERM"),
        pytest.param(signal.SIGINT, 4, "off", id="SIGINT"),
    ],
)
def test_signal__ends_after_the_step_with_a_checkpoint_that_resumes_bitwise(
    number: signal.Signals,
    done: int,
    preflight: str,
    finished: RunSummary,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a preflight before each part, or with none: it leaves no trace."""
    config = make_config(tmp_path / "run", train={"preflight": preflight})
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        stop_at(patch, done, number)
        summary = train(config)
    assert summary == RunSummary(tmp_path / "run", final=None, metrics=None, stopped_by=number.name)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    last = f"checkpoint-{done + 1}"
    assert shape_of(tmp_path / "run")[-2:] == [last, "tensorboard"]
    assert rows_of(tmp_path / "run" / last) == rows_of(finished.output_dir / "checkpoint-6")[: done + 1]

    with pytest.raises(ConfigError, match="already holds a run"):
        train(config)
    resumed = train(config, resume=True)
    assert resumed.stopped_by == ""
    assert resumed.metrics == finished.metrics
    assert_same(weights_of(tmp_path / "run" / "final"), weights_of(finished.output_dir / "final"))


def test_signal__in_the_last_step_leaves_a_run_that_resume_finishes(
    finished: RunSummary, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS - 1, signal.SIGTERM)
        assert train(config).stopped_by == "SIGTERM"
    assert train(config, resume=True).metrics == finished.metrics
    assert_same(weights_of(tmp_path / "run" / "final"), weights_of(finished.output_dir / "final"))


def test_signal__a_second_one_ends_at_once(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 1, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(tmp_path / "run"))
    assert shape_of(tmp_path / "run") == ["tensorboard"]


def test_resume__without_a_checkpoint_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        train(make_config(tmp_path / "run"), resume=True)
    assert str(caught.value).startswith(f"{tmp_path / 'run'}: there is no checkpoint to resume from")
    assert list(tmp_path.iterdir()) == []


def test_resume__a_half_written_checkpoint_is_not_taken(
    finished: RunSummary, make_config: MakeConfig, tmp_path: Path
) -> None:
    shutil.copytree(finished.output_dir / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    half = tmp_path / "run" / ".writing" / "checkpoint-6"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{")
    assert train(make_config(tmp_path / "run"), resume=True).metrics == finished.metrics
    assert "checkpoint-6" in shape_of(tmp_path / "run")
    assert list((tmp_path / "run").glob(".*")) == []


def test_resume__a_flipped_byte_is_found(
    finished: RunSummary, make_config: MakeConfig, tmp_path: Path
) -> None:
    weights = (
        shutil.copytree(finished.output_dir / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
        / "model.safetensors"
    )
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="the file differs from its hash in the manifest"):
        train(make_config(tmp_path / "run"), resume=True)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        pytest.param({"detection": {"hidden_size": 64}}, "detection.hidden_size is 64", id="head"),
        pytest.param({"data": {"labels": list(DEMO.labels)[::-1]}}, "data.labels is ", id="labels"),
        pytest.param(
            {"data": {"request": "Find {labels}."}}, "data.request is 'Find {labels}.'", id="prompt"
        ),
        pytest.param({"data": {"max_pixels": 8000}}, "data.max_pixels is 8000", id="pixels"),
        pytest.param({"model": {"dtype": "bfloat16"}}, "model.dtype is 'bfloat16'", id="dtype"),
        pytest.param({"train": {"optimizer": "adafactor"}}, "train.optimizer is 'adafactor'", id="optimizer"),
        pytest.param({"data": {"frame": "thousandths"}}, "data.frame is 'thousandths'", id="frame"),
        pytest.param(
            {"train": {"vision_learning_rate": 0.0}}, "train.vision_learning_rate is 0.0", id="frozen"
        ),
    ],
)
def test_resume__with_other_settings_than_the_run_was_started_with_is_refused(
    sections: dict[str, dict[str, Any]],
    named: str,
    finished: RunSummary,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    trainer = create_trainer(make_config(tmp_path / "run", **sections))
    with pytest.raises(CheckpointError) as caught:
        trainer.train(resume_from_checkpoint=str(finished.output_dir / "checkpoint-3"))
    assert named in str(caught.value)
    assert "but the run was started with" in str(caught.value)
    assert list((tmp_path / "run").iterdir()) == []
