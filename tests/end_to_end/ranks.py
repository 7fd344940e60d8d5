"""Started by tests: imports once, then for each job in turn forks its ranks and does one thing in each.

A job is a line on standard input, `["ddp", "config.yaml", "out", 2]`: what to do, with which config, where
to write, and by how many ranks. Its answer is a line on standard output: the exit codes of the ranks. What
a rank prints goes into out/RANK.out and out/RANK.err.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import qwendet.train
import qwendet.training.launcher
from qwendet.checks.preflight import require_preflight
from qwendet.cli.main import run as run_command
from qwendet.config.load import load_config
from qwendet.config.schema import Config
from qwendet.demo.tiny import write_untrained
from qwendet.loader import Bundle
from qwendet.model.losses import step_counts
from qwendet.train import train
from qwendet.training.build import create_trainer
from qwendet.training.trainer import DetectionTrainer


class NoteGradients(TrainerCallback):
    """Keeps the gradients of every update."""

    def __init__(self, trainer: DetectionTrainer) -> None:
        self.trainer = trainer
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = self.trainer.bundle.detector.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def ddp(config: Config, out: Path) -> None:
    """Train by the Trainer; save losses, gradients and counts of this rank."""
    trainer = create_trainer(config)
    notes = NoteGradients(trainer)
    trainer.add_callback(notes)
    counts: list[list[float]] = []
    original = trainer.get_batch_samples

    def note(iterator: Any, number: int, device: torch.device) -> Any:
        batches, total = original(iterator, number, device)
        counts.append(step_counts(batches).tolist())
        return batches, total

    trainer.get_batch_samples = note  # type: ignore[method-assign]
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss/total" in row]
    torch.save({"rows": rows, "gradients": notes.steps, "counts": counts}, out / f"{rank()}.pt")


def epoch(config: Config, out: Path) -> None:
    """Go through the batches of an epoch; save which samples this rank was given."""
    loader = create_trainer(config).get_train_dataloader()
    given = [where for batch in loader for where in batch["where"]]
    (out / f"{rank()}.json").write_text(json.dumps(given), encoding="utf-8")


def stop(config: Config, out: Path) -> None:
    """Train; the second rank alone receives SIGTERM, in its second step."""

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if rank() == 1 and state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    def create(*args: Any, **kwargs: Any) -> DetectionTrainer:
        trainer = create_trainer(*args, **kwargs)
        trainer.add_callback(Kill())
        return trainer

    qwendet.train.create_trainer = create
    (out / f"{rank()}.txt").write_text(train(config).stopped_by, encoding="utf-8")


def plain(config: Config, out: Path) -> None:
    """The command `train` without FSDP: one process, or DDP."""
    _read_job(out)
    train(config)


def _read_job(out: Path) -> dict[str, Any]:
    """What `out/job.json` says; a plant in it is done."""
    job: dict[str, Any] = json.loads((out / "job.json").read_text(encoding="utf-8"))
    exec(job.get("plant", ""), {})  # noqa: S102  # written by the test
    return job


def fsdp(config: Config, out: Path) -> None:
    """The command `train` under FSDP2, as `out/job.json` says: environment, resume, kill, plant."""
    job = _read_job(out)
    os.environ |= job["environment"]
    _fsdp_without_a_gpu()

    def spread(detector: Any) -> list[DTensor]:
        parameters = list(detector.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        return parameters

    def preflight(bundle: Bundle) -> None:
        spread(bundle.detector)  # on a GPU it is there then, with the inputs, and not before
        require_preflight(bundle)

    class Look(TrainerCallback):
        """Sees that everything is spread, and kills the process where it was asked for."""

        def __init__(self, detector: Any) -> None:
            self.detector = detector

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            parameters = spread(self.detector)
            held = sum(parameter.to_local().numel() for parameter in parameters)
            (out / f"held-{rank()}.txt").write_text(str(held), encoding="utf-8")
            if state.global_step == job.get("kill_at"):
                os.kill(os.getpid(), signal.SIGKILL)

    def create(config: Config) -> DetectionTrainer:
        trainer = create_trainer(config)
        trainer.add_callback(Look(trainer.bundle.detector))
        return trainer

    qwendet.train.create_trainer, qwendet.train.require_preflight = create, preflight
    train(config, resume=job.get("resume", False))


def _fsdp_without_a_gpu() -> None:
    """The seam: accelerate is told that these gloo processes are GPUs of its own, whose device is the CPU.

    It gives FSDP to GPUs alone, and makes DDP of it elsewhere. What it does from there on, what the Trainer
    and `fully_shard` do, and all of qwendet but the question whether there is a GPU is what runs on GPUs.
    """
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    torch.distributed.init_process_group("gloo")
    problems = qwendet.training.launcher._fsdp_problems
    qwendet.training.launcher._fsdp_problems = lambda config, has_gpu: problems(config, True)


def command(config: Path, out: Path) -> None:
    """Run the command line that stands in a file, a word a line, and end with its exit code.

    The plant of `out/job.json` is done before it, where there is one.
    """
    if (out / "job.json").exists():
        _read_job(out)
    run_command(config.read_text(encoding="utf-8").splitlines())


def rank() -> int:
    return int(os.environ["RANK"])


JOBS: dict[str, Any] = {"ddp": ddp, "epoch": epoch, "stop": stop, "plain": plain, "fsdp": fsdp}


def start(job: str, config: str, out: Path, number: int, of: int, port: int) -> int:
    process = os.fork()
    if process:
        return process
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(of)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(of)}
    for stream, ending in ((1, "out"), (2, "err")):
        with (out / f"{number}.{ending}").open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), stream)
    code: Any = 1
    try:
        torch.set_num_threads(1)  # makes the fork's own thread pool, before two threads of it would at once
        command(Path(config), out) if job == "command" else JOBS[job](load_config(config), out)
        code = 0
    except SystemExit as ending:
        code = ending.code
    except BaseException:  # noqa: BLE001  # the end of a forked process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(int(code or 0))


def do(job: str, config: str, out: Path, of: int) -> list[int]:
    """Start the ranks of a job, and wait for their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [start(job, config, out, number, of, port) for number in range(of)]
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


def main() -> None:
    torch.set_num_threads(1)
    write_untrained()
    for line in sys.stdin:
        job, config, out, of = json.loads(line)
        print(json.dumps(do(job, config, Path(out), of)), flush=True)


if __name__ == "__main__":
    main()
