"""What a run tells: numbers that are right, and evaluations in the middle of training that leave no trace."""

from __future__ import annotations

import json
import math
import random
import sys
import types
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import TrainerCallback

from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.errors import ConfigError, EnvironmentLacksError, QwendetError
from qwendet.evaluation.validation import validate, validation_samples
from qwendet.inference.predictor import Predictor
from qwendet.loader import load
from qwendet.train import train
from qwendet.training.build import create_trainer
from qwendet.training.evaluation_mode import evaluation_mode
from qwendet.training.loggers import TrackerCallback
from qwendet.training.metrics import TrainingLog, group_norms, step_volume
from qwendet.training.prefetch import StepPrefetcher
from qwendet.training.trainer import DetectionTrainer

GROUPS = ("vision", "merger", "language", "head")
MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(DEMO, folder / "val.jsonl", 6, seed=1)
    write_dataset(DEMO, folder / "train.jsonl", 10, seed=0)
    return folder


@pytest.fixture(scope="module")
def make_config(scenes: Path) -> MakeConfig:
    def make(run: Path, **sections: dict[str, Any]) -> Config:
        values: dict[str, dict[str, Any]] = {
            "model": {"path": "tiny", "device": "cpu", "dtype": "float32"},
            "data": {
                "train": str(scenes / "train.jsonl"),
                "val": str(scenes / "val.jsonl"),
                "teacher_ratio": 0.5,
            },
            "train": {
                "output_dir": str(run),
                "max_steps": 4,
                "batch_size": 2,
                "learning_rate": 1.0e-3,
                "logging_steps": 1,
                "max_grad_norm": 0.01,
                "preflight": "off",
            },
            "infer": {"batch_size": 2, "max_new_tokens": 16},
        }
        for name, section in sections.items():
            values[name] = values[name] | section
        return build_config(values, "test")

    return make


class Notes(TrainerCallback):
    """Keeps what goes into each update: gradients as they are used, weights after it, batches."""

    def __init__(self, trainer: DetectionTrainer) -> None:
        self.trainer = trainer
        self.norms: list[dict[str, float]] = []
        self.batches: list[list[dict[str, Any]]] = []
        take = trainer.get_batch_samples

        def note(*args: Any) -> Any:
            batches, counts = take(*args)
            self.batches.append(batches)
            return batches, counts

        trainer.get_batch_samples = note  # type: ignore[method-assign]
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.norms.append(
            {name: float(n) for name, n in group_norms(self.trainer.optimizer.param_groups).items()}
        )


def trained(config: Config) -> tuple[DetectionTrainer, Notes]:
    trainer = create_trainer(config)
    notes = Notes(trainer)
    trainer.train()
    return trainer, notes


def rows_of(trainer: DetectionTrainer, part: str = "loss/total") -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if part in row]


def weights_of(trainer: DetectionTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.bundle.detector.named_parameters()}


# Rows


@pytest.mark.parametrize("accumulation", [1, 2])
def test_row__group_norms_are_those_before_clipping_and_make_up_the_total(
    accumulation: int, make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"gradient_accumulation_steps": accumulation}
    trainer, notes = trained(make_config(tmp_path / "run", train=settings))
    assert len(notes.norms) == 4
    for row, clipped in zip(rows_of(trainer), notes.norms, strict=True):
        norms = {group: row[f"grad_norm/{group}"] for group in GROUPS}
        assert math.hypot(*norms.values()) == pytest.approx(row["grad_norm"], rel=1e-5)
        assert row["grad_norm"] > 0.1, "so that 0.01 is a tenth of it at most"
        for group, norm in norms.items():  # all were scaled down by one factor
            assert clipped[group] == pytest.approx(norm * 0.01 / row["grad_norm"], rel=1e-4)


def test_row__norms_are_computed_only_where_a_row_is_logged(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        "qwendet.training.trainer.group_norms",
        lambda groups, scale: calls.append(1) or group_norms(groups, scale),
    )
    trainer, _ = trained(make_config(tmp_path / "run", train={"logging_steps": 3}))
    assert [row["step"] for row in rows_of(trainer)] == [3, 4]
    assert len(calls) == 2
    assert all("grad_norm/head" in row for row in rows_of(trainer))


def test_row__a_frozen_group_has_no_norm(make_config: MakeConfig, tmp_path: Path) -> None:
    settings = {"max_steps": 1, "vision_learning_rate": 0.0}
    trainer, _ = trained(make_config(tmp_path / "run", train=settings))
    (row,) = rows_of(trainer)
    assert {name for name in row if name.startswith("grad_norm/")} == {
        "grad_norm/merger",
        "grad_norm/language",
        "grad_norm/head",
    }


@pytest.mark.parametrize("packing", [False, True])
def test_row__padding_share_is_that_of_the_batches(
    packing: bool, make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"gradient_accumulation_steps": 2, "logging_steps": 2, "packing": packing}
    trainer, notes = trained(make_config(tmp_path / "run", train=settings))
    shares = []
    for start in (0, 2):
        masks = [batch["attention_mask"] for step in notes.batches[start : start + 2] for batch in step]
        tokens, positions = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
        shares.append(1 - tokens / positions)
    found = [row["throughput/padding_share"] for row in rows_of(trainer)]
    assert found == pytest.approx(shares, abs=1e-12)
    assert max(found) == 0 if packing else max(found) > 0.01


def test_row__throughput_counts_samples_and_tokens_of_the_time_that_was_trained(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock of whole seconds, one a look: every figure can be told by hand."""
    log, clock = TrainingLog(), iter(range(0, 1000, 10))
    monkeypatch.setattr("qwendet.training.metrics.time.perf_counter", lambda: next(clock))
    log._clear()  # 0 s
    with log.waiting():  # 10 to 20 s
        pass
    with log.pausing():  # 30 to 40 s
        pass
    batch = {"num_tokens": [30, 50], "input_ids": torch.zeros(2, 50)}
    log.begin_step(step_volume([batch, batch]))
    log.add({"lm": torch.tensor(1.0), "total": torch.tensor(2.0)}, ["a:1"])
    log.add({"lm": torch.tensor(0.5), "total": torch.tensor(1.0)}, ["a:2"])
    names, terms = log.take_terms()
    log.end_step(names, terms, {"grad_norm": torch.tensor(4.0)}, {"head": 0.1})
    assert log.sources == ["a:1", "a:2"]
    assert log.row() == {  # at 50 s
        "loss/lm": 1.5,
        "loss/total": 3.0,
        "grad_norm": 4.0,
        "learning_rate/head": 0.1,
        "throughput/samples_per_second": 4 / 40,
        "throughput/tokens_per_second": 160 / 40,
        "throughput/padding_share": pytest.approx(0.2),
        "time/waiting_for_data": 0.25,
    }
    assert log.row() == {}, "no step since"


def test_step__fetches_what_the_host_must_know_in_one_transfer(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way in which a tensor's number reaches Python, while the step ends."""
    inside, fetched = [False], list[str]()
    for name in ("tolist", "item", "__float__", "__bool__", "__int__"):
        original = getattr(Tensor, name)

        def note(tensor: Tensor, *args: Any, name: str = name, original: Any = original) -> Any:
            if inside[0]:
                fetched.append(name)
            return original(tensor, *args)

        monkeypatch.setattr(Tensor, name, note)
    monkeypatch.setattr(
        "accelerate.Accelerator.clip_grad_norm_", lambda self, parameters, norm: torch.tensor(1.0)
    )  # torch's own
    clip = DetectionTrainer._clip_grad_norm

    def watched(self: DetectionTrainer, model: Any) -> Any:
        inside[0] = True
        try:
            return clip(self, model)
        finally:
            inside[0] = False

    monkeypatch.setattr(DetectionTrainer, "_clip_grad_norm", watched)
    trained(make_config(tmp_path / "run", train={"logging_steps": 2}))
    assert fetched == ["tolist"] * 4


# Batches made ahead


def test_batches__made_by_a_thread_or_a_process_are_those_made_in_turn(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven steps are an epoch and a half; demonstrations and order are drawn anew in the second."""
    seen, weights = {}, {}
    for way, workers in (("thread", 0), ("process", 1), ("in turn", 0)):
        with monkeypatch.context() as patch:
            if way == "in turn":
                patch.setattr(StepPrefetcher, "take", lambda self, source, count: list(islice(source, count)))
            data = {"num_workers": workers, "teacher_ratio": 0.5}
            trainer, notes = trained(make_config(tmp_path / way, train={"max_steps": 7}, data=data))
        seen[way] = [batch["input_ids"] for step in notes.batches for batch in step]
        weights[way] = weights_of(trainer)
    assert len(seen["in turn"]) == 7
    for way in ("thread", "process"):
        assert all(torch.equal(*pair) for pair in zip(seen[way], seen["in turn"], strict=True)), way
        assert all(torch.equal(found, weights["in turn"][name]) for name, found in weights[way].items()), way


# float16


class Scaler:
    """What float16's scaler says."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def test_float16__norms_are_unscaled_and_an_overflow_is_left_to_the_scaler(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    trainer, _ = trained(make_config(tmp_path / "run", train={"max_steps": 1}))
    head = trainer.bundle.detector.head
    assert head is not None
    for parameter in trainer.bundle.detector.parameters():
        parameter.grad = None
    head.norm.weight.grad = torch.full_like(head.norm.weight, 1024.0)
    wanted = 1024.0 * math.sqrt(head.norm.weight.numel())
    for scale in (1.0, 65536.0):
        trainer.accelerator.scaler = Scaler(scale)  # type: ignore[assignment]
        assert float(trainer._group_norms()["grad_norm/head"]) == pytest.approx(wanted / scale)
    head.norm.weight.grad[0] = math.inf
    trainer._require_finite({"total": 1.0}, {"grad_norm": math.inf})
    trainer.accelerator.scaler = Scaler(1.0)  # type: ignore[assignment]
    with pytest.raises(QwendetError, match="not finite: the gradient norm"):
        trainer._require_finite({"total": 1.0}, {"grad_norm": math.inf})
    trainer.accelerator.scaler = Scaler(65536.0)  # type: ignore[assignment]
    with pytest.raises(QwendetError, match="not finite: total"):
        trainer._require_finite({"total": math.nan}, {"grad_norm": math.inf})


# Validation during training

DROPOUT = {"lora": {"rank": 4, "dropout": 0.3, "targets": "all"}}


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="plain"),
        pytest.param({"infer": {"mode": "both"}, "model": DROPOUT}, id="text and dropout"),
        pytest.param({"train": {"autocast": "bf16"}}, id="autocast"),
        pytest.param({"model": {"gradient_checkpointing": True}}, id="gradient checkpointing"),
    ],
)
def test_eval_steps__leave_no_trace_in_the_weights(
    sections: dict[str, dict[str, Any]], make_config: MakeConfig, tmp_path: Path
) -> None:
    own = sections.get("train", {})
    plain, _ = trained(make_config(tmp_path / "plain", **sections | {"train": own}))
    settings = own | {"eval_steps": 1, "evaluate": False}
    watched, _ = trained(make_config(tmp_path / "watched", **sections | {"train": settings}))
    assert [row["step"] for row in rows_of(watched, "validation/head/AP50")] == [1, 2, 3, 4]
    found, wanted = weights_of(watched), weights_of(plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    for name in ("loss/total", "grad_norm"):
        assert [row[name] for row in rows_of(watched)] == [row[name] for row in rows_of(plain)]


def test_evaluation_mode__gives_back_modes_and_random_states(make_config: MakeConfig, tmp_path: Path) -> None:
    detector = load(make_config(tmp_path / "run"), for_inference=False).detector
    detector.train()
    detector.vlm.model.visual.eval()
    modes = [module.training for module in detector.modules()]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    with pytest.raises(KeyError), evaluation_mode(detector):
        assert not any(module.training for module in detector.modules())
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        raise KeyError
    assert [module.training for module in detector.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002


def test_eval_steps__give_what_the_checkpoint_of_the_same_step_gives(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """With mixed precision, which is the served model's, too; a frozen part is in bfloat16."""
    settings = {"eval_steps": 2, "save_steps": 2, "vision_learning_rate": 0.0}
    config = make_config(tmp_path / "run", train=settings, model={"dtype": "bfloat16"})
    summary = train(config)
    assert summary.metrics is not None
    history = json.loads((tmp_path / "run/checkpoint-4/trainer_state.json").read_text())["log_history"]
    row, last = (row for row in history if "validation/head/AP50" in row)
    assert (row["step"], last["step"]) == (2, 4)
    assert last["validation/head/AP50"] == summary.metrics["head/AP50"], "the last model is measured once"
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name in ("head/AP", "head/AP50", "head/AR_100"):
        points = [(event.step, event.value) for event in events.Scalars(f"validation/{name}")]
        wanted = [row[f"validation/{name}"], summary.metrics[name]]
        assert points == [(2, pytest.approx(wanted[0])), (4, pytest.approx(wanted[1]))]
    served = Predictor.from_checkpoint(tmp_path / "run" / "checkpoint-2")
    again = validate(served.bundle, validation_samples(config))
    assert again.metrics["head/AP50"] == row["validation/head/AP50"]
    assert again.metrics["head/AP"] == row["validation/head/AP"]


def test_eval_samples__are_the_first_and_their_pictures_are_shown(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"eval_steps": 2, "eval_samples": 3, "evaluate": False}
    trainer, _ = trained(make_config(tmp_path / "run", train=settings, infer={"mode": "both"}))
    assert [sample.student.image for sample in trainer._validation_samples] == [
        f"images/val_{index:05d}.png" for index in range(3)
    ]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == [f"validation/image_{index}" for index in range(3)]
    assert [image.step for image in events.Images("validation/image_0")] == [2, 4]
    first = events.Images("validation/image_0")[0]
    assert first.width == 3 * (first.height - 22), "ground truth, head and text, with titles"
    assert 0 <= rows_of(trainer, "validation/text/AP50")[0]["validation/text/AP50"] <= 1
    assert not any(value < 0 for row in trainer.state.log_history for value in row.values())


def test_eval_steps__without_validation_samples_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.eval_steps is 2, but data.val is not set"):
        make_config(tmp_path / "run", train={"eval_steps": 2}, data={"val": None})


# Boards


class FakeWandb(types.ModuleType):
    """Stands for the package: what was logged, and when it was finished."""

    class Error(Exception):
        pass

    def __init__(self, refuses: str = "") -> None:
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
        self.refuses = refuses
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.begun: dict[str, Any] = {}
        self.finished = 0

    def init(self, **settings: Any) -> FakeWandb:
        if self.refuses:
            raise self.Error(self.refuses)
        self.begun = settings
        return self

    def log(self, row: dict[str, Any], step: int) -> None:
        self.logged.append((step, row))

    def finish(self) -> None:
        self.finished += 1

    @staticmethod
    def Settings(**settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    @staticmethod
    def Image(picture: Image.Image) -> Image.Image:  # noqa: N802
        return picture


def test_wandb__is_shown_the_same_rows_and_pictures_by_its_switch(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = make_config(tmp_path / "run", train={"report_to": ["wandb", "tensorboard"], "max_steps": 2})
    summary = train(config)
    assert summary.metrics is not None
    assert (wandb.begun["project"], wandb.begun["name"]) == ("qwendet", "run")
    assert wandb.begun["config"]["train"]["max_steps"] == 2
    assert wandb.finished == 1
    losses = [(step, row["loss/total"]) for step, row in wandb.logged if "loss/total" in row]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars("loss/total")]
    assert losses == shown
    ((step, metrics),) = ((step, row) for step, row in wandb.logged if "validation/head/AP50" in row)
    assert (step, metrics["validation/head/AP50"]) == (2, summary.metrics["head/AP50"])
    pictures = [(step, name) for step, row in wandb.logged for name in row if "/image_" in name]
    assert pictures == [(2, f"validation/image_{index}") for index in range(4)]


def test_wandb__that_cannot_be_begun_says_how_to_go_on(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("api_key not configured (no-tty)\nmore"))
    trainer = create_trainer(make_config(tmp_path / "run", train={"report_to": "wandb"}))
    with pytest.raises(EnvironmentLacksError) as caught:
        trainer.train()
    assert str(caught.value) == (
        "train.report_to: Weights & Biases cannot be used: api_key not configured (no-tty)"
        " (run `wandb login`, set WANDB_MODE=offline, or leave wandb out)"
    )


def test_wandb__that_is_not_installed_is_told_before_anything_is_loaded(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, find=None: None)
    monkeypatch.setattr("qwendet.training.build.load", lambda *args, **kwargs: pytest.fail("loaded"))
    config = make_config(tmp_path / "run", train={"report_to": "wandb"})
    with pytest.raises(EnvironmentLacksError) as caught:
        train(config)
    assert "wandb needs the package wandb (pip install 'qwendet[wandb]'" in str(caught.value)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()


def test_no_board__leaves_no_files(make_config: MakeConfig, tmp_path: Path) -> None:
    trainer, _ = trained(make_config(tmp_path / "run", train={"report_to": [], "max_steps": 1}))
    assert trainer.trackers.trackers == []
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-1"]


def test_tensorboard__of_a_resumed_run_hides_what_is_done_again(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"save_steps": 2, "evaluate": False}
    trained(make_config(tmp_path / "run", train=settings))
    trainer = create_trainer(make_config(tmp_path / "run", train=settings))
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4]


def test_boards__stay_open_until_the_outermost_block_ends(make_config: MakeConfig, tmp_path: Path) -> None:
    closed: list[str] = []

    board: Any = types.SimpleNamespace(finish=lambda: closed.append("closed"))
    report = TrackerCallback(make_config(tmp_path / "run"))
    with report.closing():
        with report.closing():
            report.trackers = [board]
        assert closed == []
    assert closed == ["closed"]
