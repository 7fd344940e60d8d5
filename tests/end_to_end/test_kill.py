"""A run that is killed, out of disk or short of a process loses nothing that it had saved."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import qwendet.train
from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.dataset import TrainingSamples
from qwendet.errors import CheckpointError, ConfigError, EnvironmentLacksError, QwendetError
from qwendet.evaluation.command import evaluate_model
from qwendet.files import sha256_of_file
from qwendet.infer import infer
from qwendet.loading.manifest import HEAD_WEIGHTS, read_manifest
from qwendet.train import train
from qwendet.training.build import create_trainer
from qwendet.training.resume import checkpoints, latest_checkpoint, rotate

MakeConfig = Callable[..., Config]
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(DEMO, tmp_path_factory.mktemp("scenes") / "train.jsonl", 6, seed=1)


@pytest.fixture(scope="module")
def make_config(scenes: Path) -> MakeConfig:
    """Four steps, a checkpoint after each second; arguments after the folder are keys of `train`."""

    def make(output_dir: Path, num_workers: int = 0, **settings: Any) -> Config:
        train_settings = {
            "output_dir": str(output_dir),
            "max_steps": 4,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "logging_steps": 1,
            "preflight": "off",
        }
        return build_config(
            {
                "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
                "data": {"train": str(scenes), "labels": list(DEMO.labels), "num_workers": num_workers},
                "detection": {"hidden_size": 64, "num_layers": 1, "num_heads": 4},
                "train": train_settings | settings,
            },
            "test",
        )

    return make


@pytest.fixture(scope="module")
def finished(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its end; read only."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(make_config(run))
    return run


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A run that was stopped after its last checkpoint, to break."""
    run = tmp_path / "run"
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(finished / name, run / name)
    return run


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_callback(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], object]) -> None:
    """Have the next run call a function with the number of finished steps before each step."""

    class BeforeStep(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            action(state.global_step)

    def create(*args: Any, **kwargs: Any) -> Any:
        trainer = create_trainer(*args, **kwargs)
        trainer.add_callback(BeforeStep())
        return trainer

    monkeypatch.setattr(qwendet.train, "create_trainer", create)


def test_kill__five_times_anywhere_nothing_is_lost_and_all_runs_end_the_same(
    repo_root: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.kill_resume",
        "--kills",
        "5",
        "--json",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
    assert (figures["survived"], figures["kills"], figures["lost"]) == (5, 5, 0), done.stderr[-3000:]
    assert figures["killed_inside_a_save"] >= 1
    assert "survived 5 of 5, lost 0" in done.stdout


# A kill between the two renames of a replacement

KILLED = """
import os, pathlib, signal, sys
import qwendet.train
from qwendet.config.schema import Config
from qwendet.train import train

config, older, name = sys.argv[1:]
sound = pathlib.Path.rename

def rename(self, target):
    if pathlib.Path(target).name == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return sound(self, target)

pathlib.Path.rename = rename
if older:
    qwendet.train.latest_checkpoint = lambda run: pathlib.Path(older)
train(Config.model_validate_json(config), resume=True)
"""


def killed_while_replacing(config: Config, name: str, older: Path | None, repo_root: Path) -> None:
    """Resume a run, from an older checkpoint if one is given, and die when the new folder gets its name."""
    arguments = [config.model_dump_json(), "" if older is None else str(older), name]
    command = [sys.executable, "-c", KILLED, *arguments]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    run = Path(config.train.output_dir)
    assert not (run / name).exists()
    assert (run / f".{name}.replaced").is_dir()


def test_kill__while_final_is_replaced__final_is_found_again(
    stopped: Path,
    finished: Path,
    make_config: MakeConfig,
    scenes: Path,
    repo_root: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    final = shutil.copytree(finished / "final", stopped / "final")
    killed_while_replacing(make_config(stopped), "final", None, repo_root)
    for use in (
        lambda: infer(final, [scenes]),
        lambda: evaluate_model(final, scenes),
        lambda: evaluate_model(finished / "final", scenes, compare=final),
    ):
        if final.exists():  # as the kill left it
            final.rename(stopped / ".final.replaced")
        caplog.clear()
        use()
        assert f"{final} is put back as it was: the process that was replacing it was cut off" in caplog.text
        assert read_manifest(final).parameters == read_manifest(finished / "final").parameters


def test_kill__while_a_checkpoint_is_replaced__the_run_goes_on_from_it(
    stopped: Path,
    finished: Path,
    make_config: MakeConfig,
    repo_root: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = stopped / "checkpoint-4"
    killed_while_replacing(make_config(stopped), checkpoint.name, stopped / "checkpoint-2", repo_root)
    assert latest_checkpoint(stopped) == checkpoint
    assert f"{checkpoint} is put back as it was" in caplog.text
    shutil.rmtree(stopped / "checkpoint-2")
    checkpoint.rename(stopped / ".checkpoint-4.replaced")  # as the kill left it
    with pytest.raises(ConfigError) as caught:
        train(make_config(stopped))
    assert caught.value.problems[0].fix.startswith("continue it with --resume")
    train(make_config(stopped), resume=True)
    assert read_manifest(stopped / "final").parameters == read_manifest(finished / "final").parameters
    assert list(stopped.glob(".*.replaced")) == []


# Which checkpoint is taken


@pytest.mark.parametrize("name", [*STATE, "model.safetensors", HEAD_WEIGHTS, "qwendet.json"])
def test_resume__a_newer_checkpoint_with_a_changed_byte_is_passed_over(
    name: str, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_byte(stopped / "checkpoint-4" / name)
    assert latest_checkpoint(stopped) == stopped / "checkpoint-2"
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert warning.startswith(f"passed over checkpoint-4: {stopped / 'checkpoint-4' / name}")


@pytest.mark.parametrize("name", [*STATE, "resume.json"])
def test_resume__a_checkpoint_that_lacks_a_file_of_the_training_state_is_passed_over(
    name: str, stopped: Path
) -> None:
    (stopped / "checkpoint-4" / name).unlink()
    assert latest_checkpoint(stopped) == stopped / "checkpoint-2"


def test_resume__a_file_that_nobody_vouches_for_is_found(stopped: Path) -> None:
    (stopped / "checkpoint-4" / "scaler.pt").write_bytes(b"")
    assert latest_checkpoint(stopped) == stopped / "checkpoint-2"


def test_resume__without_a_complete_checkpoint_names_what_is_wrong_with_each(stopped: Path) -> None:
    flip_byte(stopped / "checkpoint-4" / "optimizer.pt")
    (stopped / "checkpoint-2" / "rng_state.pth").unlink()
    with pytest.raises(CheckpointError) as caught:
        latest_checkpoint(stopped)
    assert [(problem.where, problem.what) for problem in caught.value.problems] == [
        (str(stopped / "checkpoint-4" / "optimizer.pt"), "the file differs from its hash in resume.json"),
        (str(stopped / "checkpoint-2" / "rng_state.pth"), "a file of the checkpoint is missing"),
    ]


def test_resume__from_the_older_one_gives_the_same_and_replaces_the_damaged_one(
    stopped: Path, finished: Path, make_config: MakeConfig
) -> None:
    flip_byte(stopped / "checkpoint-4" / "optimizer.pt")
    train(make_config(stopped), resume=True)
    assert latest_checkpoint(stopped) == stopped / "checkpoint-4"
    assert read_manifest(stopped / "final").parameters == read_manifest(finished / "final").parameters
    assert list(stopped.glob(".*")) == []


def test_resume__with_another_number_of_processes_says_so(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each takes its own share of the samples, so the run is not the same bit for bit."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert latest_checkpoint(stopped) == stopped / "checkpoint-4"
    assert "differs from the checkpoint: processes: 1, now 2" in caplog.text


def test_rotate__keeps_the_one_just_written_though_a_damaged_one_has_a_higher_number(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(tmp_path, tmp_path / "checkpoint-3", 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    rotate(tmp_path, tmp_path / "checkpoint-3", 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]


class Planted:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch unpickled",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_resume__a_pickle_in_the_training_state_is_not_run(
    name: str, stopped: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its hash made right, so that only the reading itself can refuse it."""
    monkeypatch.chdir(tmp_path)
    folder = stopped / "checkpoint-4"
    torch.save({"state": Planted()}, folder / name, pickle_module=pickle)
    record = json.loads((folder / "resume.json").read_text(encoding="utf-8"))
    record["files"][name] = sha256_of_file(folder / name)
    (folder / "resume.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be loaded: Weights only load failed"):
        train(make_config(stopped, max_steps=5), resume=True)
    assert not (tmp_path / "unpickled").exists()


# What the machine does not give


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Sets the largest file that this process may write; a disk that is full answers the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("megabytes", [1, 14], ids=["in the weights", "in the optimizer"])
def test_full_disk__ends_with_code_3_keeps_the_earlier_checkpoint_and_resumes_bitwise(
    megabytes: int,
    finished: Path,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file_size_limit: Callable[[int], None],
) -> None:
    sizes = {path.name: path.stat().st_size / 1e6 for path in (finished / "checkpoint-4").iterdir()}
    assert 1 < sizes["model.safetensors"] < 14 < sizes["optimizer.pt"]
    config = make_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        with_callback(patch, lambda done: file_size_limit(megabytes * 10**6) if done == 2 else None)
        with pytest.raises(EnvironmentLacksError, match="the checkpoint cannot be written") as caught:
            train(config)
    file_size_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert caught.value.exit_code == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2", "tensorboard"]
    train(config, resume=True)
    found, wanted = (read_manifest(run / "final").parameters for run in (tmp_path / "run", finished))
    assert found == wanted


def test_read_only__is_said_before_training_starts(make_config: MakeConfig, tmp_path: Path) -> None:
    """As root every directory can be written to, but for those of the kernel."""
    folder = Path("/sys") if os.geteuid() == 0 else tmp_path
    if os.geteuid() != 0:
        tmp_path.chmod(0o555)
    with pytest.raises(QwendetError, match=f"cannot write to {folder / 'qwendet-run'}") as caught:
        train(make_config(folder / "qwendet-run"))
    assert caught.value.problems[0].where == "train.output_dir"


def test_world_writable__output_directory_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o777)
    with pytest.raises(QwendetError, match="every user of this machine may write") as caught:
        train(make_config(run))
    assert caught.value.problems[0].fix == f"chmod o-w {run}"
    assert list(run.iterdir()) == []


def test_worker__killed_for_memory_is_named_and_the_run_resumes(
    finished: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TrainingSamples.__getitem__
    testing = os.getpid()

    def die(self: TrainingSamples, position: int) -> Any:
        if os.getpid() != testing and position == 0 and self.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, position)

    config = make_config(tmp_path / "run", num_workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingSamples, "__getitem__", die)
        with pytest.raises(EnvironmentLacksError, match="a process that reads samples is gone") as caught:
            train(config)
    assert "lower data.num_workers" in str(caught.value)
    assert latest_checkpoint(tmp_path / "run").name == "checkpoint-2"
    train(make_config(tmp_path / "run"), resume=True)
    found, wanted = (read_manifest(run / "final").parameters for run in (tmp_path / "run", finished))
    assert found == wanted
