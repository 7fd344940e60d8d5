"""The main job: train, save, stop, resume, predict; and the promise: what is served is what was trained."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_pt_utils import safe_globals

import qwendet.run
from qwendet.build_trainer import create_trainer
from qwendet.config import Config
from qwendet.config_file import build_config
from qwendet.data.encode import EncodedSample, Encoder
from qwendet.data.shapes import DEMO, write_dataset
from qwendet.errors import CheckpointError, ConfigError, EnvironmentLacksError, QwendetError
from qwendet.infer_command import infer
from qwendet.inference import Predictor
from qwendet.loader import config_of_checkpoint
from qwendet.parameter_groups import GROUPS, group_of
from qwendet.run import RunSummary, train
from qwendet.training import DetectionTrainer, TrainingDivergedError

STEPS = 6
TERMS = ("lm", "teacher", "student", "detection", "class", "l1", "giou", "total")
HEAD_OFF = {
    "detection": {"enabled": False, "hidden_size": None, "num_layers": None, "num_heads": None},
    "data": {"allow": ["config.detection.off_with_boxes"]},
}

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.jsonl`: 20 images, one a negative, one with a teacher of its own; `val.jsonl`: 6 images."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(DEMO, folder / "val.jsonl", 6, seed=1)
    path = write_dataset(DEMO, folder / "train.jsonl", 20, seed=0)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records[3]["objects"] = []
    records[5] = {"teachers": [records[0]], "student": records[5]}
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make_config(scenes: Path) -> MakeConfig:
    """Five batches an epoch, so that six steps see two; arguments after the folder are sections."""

    def make(output_dir: Path, **sections: dict[str, Any]) -> Config:
        values: dict[str, dict[str, Any]] = {
            "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
            "data": {
                "train": str(scenes / "train.jsonl"),
                "val": str(scenes / "val.jsonl"),
                "labels": list(DEMO.labels),
                "teacher_ratio": 0.5,
            },
            "detection": {"hidden_size": 128, "num_layers": 2, "num_heads": 4},
            "loss": {"teacher_loss_weight": 0.3, "lm_loss_weight": 0.7, "detection_loss_weight": 1.5},
            "train": {
                "output_dir": str(output_dir),
                "max_steps": STEPS,
                "batch_size": 4,
                "learning_rate": 1.0e-3,
                "head_learning_rate": 5.0e-4,
                "save_steps": 3,
                "save_total_limit": 5,
                "logging_steps": 1,
            },
            "infer": {"max_new_tokens": 16},
        }
        for name, section in sections.items():
            values[name] = values[name] | section
        return build_config(values, "test")

    return make


@pytest.fixture(scope="module")
def finished(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """A run that came to its end; read only."""
    return train(make_config(tmp_path_factory.mktemp("runs") / "run"))


class BeforeStep(TrainerCallback):
    """Calls a function with the number of finished steps before each step."""

    def __init__(self, action: Callable[[int], object]) -> None:
        self.action = action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action(state.global_step)


def parameters_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def weights_of(folder: Path) -> dict[str, Tensor]:
    return parameters_of(Predictor.from_checkpoint(folder).bundle.detector)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].nan_to_num(7e7), tensor.nan_to_num(7e7)), name


def rows_of(checkpoint: Path) -> list[dict[str, float]]:
    """Rows that were logged, without times and what is divided by them."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    rows = [row for row in state["log_history"] if "loss/total" in row]
    timed = ("time/", "throughput/samples", "throughput/tokens")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]


def shape_of(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


# What a run leaves


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


# The promise


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
        pytest.param({"model": {"attn_implementation": "eager"}}, id="eager"),
        pytest.param({"model": {"gradient_checkpointing": True}}, id="gradient checkpointing"),
        pytest.param({"data": {"max_pixels": 8000}}, id="pixel limit"),
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


def test_train__without_evaluation_nothing_is_predicted(make_config: MakeConfig, tmp_path: Path) -> None:
    for name, sections in (("a", {"train": {"evaluate": False}}), ("b", {"data": {"val": None}})):
        short = {"max_steps": 1} | sections.pop("train", {})
        summary = train(make_config(tmp_path / name, train=short, **sections))
        assert summary.metrics is None
        assert shape_of(tmp_path / name) == ["checkpoint-1", "final", "tensorboard"]


# Stop and resume


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


def stop_at(monkeypatch: pytest.MonkeyPatch, done: int, signal_number: int, times: int = 1) -> None:
    """Have the next run receive a signal in the step after `done` finished ones."""

    def kill(finished_steps: int) -> None:
        for _ in range(times if finished_steps == done else 0):
            os.kill(os.getpid(), signal_number)

    def create(*args: Any, **kwargs: Any) -> DetectionTrainer:
        trainer = create_trainer(*args, **kwargs)
        trainer.add_callback(BeforeStep(kill))
        return trainer

    monkeypatch.setattr(qwendet.run, "create_trainer", create)


@pytest.mark.parametrize(
    ("number", "done"),
    [pytest.param(signal.SIGTERM, 1, id="SIGTERM"), pytest.param(signal.SIGINT, 4, id="SIGINT")],
)
def test_signal__ends_after_the_step_with_a_checkpoint_that_resumes_bitwise(
    number: signal.Signals,
    done: int,
    finished: RunSummary,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(tmp_path / "run")
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
    assert str(caught.value).startswith(f"{tmp_path / 'run'}: the output directory is a file")


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


# What is trained


@pytest.mark.parametrize("frozen", GROUPS)
def test_frozen__a_group_with_learning_rate_0_does_not_change_and_the_others_do(
    frozen: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    trainer = create_trainer(
        make_config(
            tmp_path / "run",
            train={"max_steps": 3, "lr_scheduler": "constant", f"{frozen}_learning_rate": 0.0},
        )
    )
    before = parameters_of(trainer.bundle.detector)
    trainer.train()
    after = parameters_of(trainer.bundle.detector)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {group_of(name) for name in changed} == set(GROUPS) - {frozen}
    unchanged = {name for name in before.keys() - changed if group_of(name) != frozen}
    assert unchanged == set(), "every parameter of a group with a learning rate trains"
    assert frozen not in {group["name"] for group in trainer.optimizer.param_groups}


@pytest.fixture(scope="module")
def four(scenes: Path) -> Path:
    """Four of the samples, the negative and the one with its own teacher among them."""
    lines = (scenes / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = scenes / "four.jsonl"
    path.write_text("".join(lines[3:7]), encoding="utf-8")
    return path


def test_right_padding__planted_into_the_collator_stops_before_the_first_step(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """The fifth bug of the original scripts."""
    trainer = create_trainer(make_config(tmp_path / "run"))
    collate = trainer.data_collator

    def pad_right(samples: Any) -> Any:
        batch = collate(samples)
        pads = (1 - batch["attention_mask"]).sum(1).tolist()
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
            batch[name] = torch.stack([row.roll(-pad) for row, pad in zip(batch[name], pads, strict=True)])
        return batch

    trainer.data_collator = pad_right
    with pytest.raises(QwendetError, match="not padded on the left"):
        trainer.train()


def test_accumulation__four_of_one_is_one_of_four(
    four: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """The whole file is one step, so that both see the same samples."""
    rows, gradients = [], []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        settings = {"max_steps": 1, "batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        data = {"train": str(four)}
        trainer = create_trainer(make_config(tmp_path / str(batch_size), train=settings, data=data))
        found: dict[str, Tensor] = {}
        trainer.add_callback(BeforeUpdate(trainer, found))
        trainer.train()
        gradients.append(found)
        rows.append(next(row for row in trainer.state.log_history if "loss/total" in row))
    assert rows[0]["loss/teacher"] > 0
    for name in (*(f"loss/{term}" for term in TERMS), "grad_norm", "loss"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-4), name
    scale = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.slow
def test_two_processes__two_of_two_is_one_of_four(
    four: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """`torchrun`: the same losses as one process, one set of files, no process left behind."""
    rows = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        settings = {"max_steps": 2, "batch_size": 4 // processes, "warmup_ratio": 0.0}
        config = make_config(run, train=settings, data={"train": str(four), "val": None})
        path = tmp_path / f"{processes}.yaml"
        path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())), encoding="utf-8")
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
        command = [
            sys.executable,
            "-m",
            *launcher[: 4 if processes > 1 else 0],
            "qwendet",
            "train",
            str(path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert shape_of(run) == ["checkpoint-2", "final", "tensorboard"]
        rows.append(rows_of(run / "checkpoint-2"))
    for one, two in zip(*rows, strict=True):
        for name in (*(f"loss/{term}" for term in TERMS), "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name


class BeforeUpdate(TrainerCallback):
    """Notes the gradients that the optimizer is about to use."""

    def __init__(self, trainer: DetectionTrainer, found: dict[str, Tensor]) -> None:
        self.trainer = trainer
        self.found = found

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, parameter in self.trainer.bundle.detector.named_parameters():
            if parameter.grad is not None:
                self.found[name] = parameter.grad.clone()


def test_gradient_checkpointing__same_losses_and_gradient_norm(
    finished: RunSummary, make_config: MakeConfig, tmp_path: Path
) -> None:
    trainer = create_trainer(
        make_config(tmp_path / "run", model={"gradient_checkpointing": True}, train={"max_steps": 1})
    )
    trainer.train()
    found, wanted = trainer.state.log_history[0], rows_of(finished.output_dir / "checkpoint-6")[0]
    for name in (*(f"loss/{term}" for term in TERMS), "grad_norm"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name


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


# What is not finite


def run_until_diverged(
    trainer: DetectionTrainer, plant: Callable[[int], object] = lambda done: None
) -> tuple[str, dict[str, Tensor]]:
    """The error's text, and the weights as they were before the step that went wrong."""
    before: dict[str, Tensor] = {}

    def prepare(done: int) -> None:
        plant(done)
        before.update(parameters_of(trainer.bundle.detector))

    trainer.add_callback(BeforeStep(prepare))
    with pytest.raises(TrainingDivergedError) as caught:
        trainer.train()
    assert caught.value.exit_code == 1
    return str(caught.value), before


def test_diverged__a_parameter_that_is_nan_stops_before_the_update(
    make_config: MakeConfig, tmp_path: Path, scenes: Path
) -> None:
    trainer = create_trainer(make_config(tmp_path / "run"))
    head = trainer.bundle.detector.head
    assert head is not None

    def plant(done: int) -> None:
        if done == 2:
            with torch.no_grad():
                head.norm.weight[0] = float("nan")

    message, before = run_until_diverged(trainer, plant)
    where, _, what = message.partition(": step 3: not finite: ")
    assert what.startswith("class, detection, giou, l1, total (look at these samples, "), message
    assert where.startswith("samples ")
    assert where.count(f"{scenes / 'train.jsonl'}:") == 4
    assert_same(parameters_of(trainer.bundle.detector), before)
    assert shape_of(tmp_path / "run") == ["tensorboard"]


def test_diverged__pixels_that_are_nan_name_their_sample(
    make_config: MakeConfig, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Encoder.encode

    def with_nan(self: Encoder, *args: Any, **kwargs: Any) -> EncodedSample:
        encoded = encode(self, *args, **kwargs)
        if encoded.where.endswith(":8"):
            encoded.pixel_values[-1, 0] = float("nan")
        return encoded

    monkeypatch.setattr(Encoder, "encode", with_nan)
    settings = {"batch_size": 1, "max_steps": 20, "save_steps": 100}
    trainer = create_trainer(make_config(tmp_path / "run", train=settings))
    message, before = run_until_diverged(trainer)
    assert message.startswith(f"samples {scenes / 'train.jsonl'}:8: step ")
    assert re.search(r"step \d+: not finite: class, detection, giou, l1, lm, student, ", message)
    assert_same(parameters_of(trainer.bundle.detector), before)


def test_diverged__a_gradient_that_is_infinite_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    trainer = create_trainer(make_config(tmp_path / "run"))
    weight = trainer.bundle.detector.vlm.model.visual.merger.mlp[0].weight
    weight.register_hook(lambda gradient: gradient / 0)
    message, before = run_until_diverged(trainer)
    assert "step 1: not finite: the gradient norm" in message
    assert_same(parameters_of(trainer.bundle.detector), before)


# The parts of a run belong to each other


def test_config_of_checkpoint__is_the_resolved_config_of_the_run(
    finished: RunSummary, make_config: MakeConfig
) -> None:
    assert finished.final is not None
    stored, given = config_of_checkpoint(finished.final), make_config(finished.output_dir)
    assert stored.train == given.train
    assert stored.loss == given.loss
    assert stored.model.path == str(finished.final)
    assert (stored.model.dtype, stored.model.attn_implementation) == ("float32", "sdpa")
    assert stored.data.labels == DEMO.labels
    assert stored.data.max_pixels == 224 * 224
