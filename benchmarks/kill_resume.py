"""Kill a training at random moments, a third of them inside a save, resume it, and compare.

    python -m benchmarks.kill_resume [--kills 30] [--seed 0]

Survived: the resumed run ends with bitwise the losses, evaluations, average and best model of one that nobody
killed. Lost: a checkpoint that had its final name when the process died, and that is not complete afterwards.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import parser, report
from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.demo.tiny import write_untrained
from qwendet.errors import CheckpointError
from qwendet.loading.manifest import read_manifest
from qwendet.train import train
from qwendet.training.best import find_best
from qwendet.training.resume import checkpoints, latest_checkpoint, step_of
from qwendet.training.trainer import STAGING

STEPS, SAVE_STEPS = 6, 2


def make_config(scenes: Path, run: Path) -> Config:
    """A short run in which everything that has a state has one: order, teachers, augmentation, average."""
    return build_config(
        {
            "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
            "data": {
                "train": str(scenes),
                "val": str(scenes.with_name("val.jsonl")),
                "labels": list(DEMO.labels),
                "teacher_ratio": 0.5,
                "augment": "strong",
            },
            "detection": {"hidden_size": 64, "num_layers": 1, "num_heads": 4},
            "train": {
                "output_dir": str(run),
                "max_steps": STEPS,
                "batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-3,
                "eval_steps": 1,
                "best_metric": "head/AR_100",
                "ema": {"decay": 0.9},
                "evaluate": False,
                "save_steps": SAVE_STEPS,
                "logging_steps": 1,
                "preflight": "off",
            },
        },
        "benchmark",
    )


def start(config: Config, *, resume: bool) -> int:
    """Train in a process of its own, forked after the imports; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        torch.set_num_threads(1)  # makes the fork's own thread pool, before two threads of it would at once
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            train(config, resume=resume)
        code = 0
    except BaseException:  # noqa: BLE001  # the end of a forked process: nothing may return into the caller
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(process: int) -> None:
    """Wait for a process that is to end by itself."""
    _, status = os.waitpid(process, 0)
    if status:
        raise SystemExit(f"a training ended with status {status}")


def outcome(run: Path) -> dict[str, Any]:
    """Losses and evaluations of every step, and the hash of every parameter at the end and of the best."""
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text(encoding="utf-8"))
    told = ("loss", "learning_rate", "grad_norm", "validation")  # beside them, how long things took
    rows = [
        {name: value for name, value in row.items() if name.startswith(told)} for row in state["log_history"]
    ]
    parameters = {name: read_manifest(run / name).parameters for name in ("final", "best")}
    return {"rows": rows, "best": find_best(run), **parameters}


@dataclass(frozen=True)
class Reference:
    """The run that nobody killed: how it ended, and how long it and one of its saves took, in seconds."""

    outcome: dict[str, Any]
    seconds: float
    save_seconds: float


def uninterrupted(scenes: Path, run: Path) -> Reference:
    """Train to the end, watching the saves."""
    began = time.monotonic()
    process = start(make_config(scenes, run), resume=False)
    saving = 0.0
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        seen = time.monotonic()
        time.sleep(0.001)
        if (run / STAGING).exists():
            saving += time.monotonic() - seen
    return Reference(outcome(run), time.monotonic() - began, saving / (STEPS // SAVE_STEPS))


def kill_somewhere(
    process: int, run: Path, chance: random.Random, reference: Reference, *, inside: bool
) -> None:
    """Kill a training; ``inside`` a save, or at any moment."""
    if inside:
        before = chance.randrange(STEPS // SAVE_STEPS)  # this many checkpoints are there already
        stop_inside_save(process, run, before, chance.uniform(0, reference.save_seconds))
    else:
        time.sleep(chance.uniform(0, reference.seconds))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def stop_inside_save(process: int, run: Path, before: int, delay: float) -> None:
    """Stop a training some time into a save; if that was over by then, halfway as far into the next one.

    A process that ends before is left ended: it is then killed after its last save.
    """
    while True:
        while len(checkpoints(run)) < before or not (run / STAGING).exists():
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(process, signal.SIGSTOP)
        if (run / STAGING).exists():
            return
        os.kill(process, signal.SIGCONT)
        delay /= 2


def is_lost(run: Path, published: list[Path]) -> bool:
    """Whether the newest checkpoint that had its name at the kill cannot be resumed from."""
    if not published:
        return False
    try:
        return step_of(latest_checkpoint(run)) < step_of(published[-1])
    except CheckpointError:
        return True


def main() -> None:
    """Kill, resume, compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=30)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    write_untrained()  # once, for all processes
    gc.collect()
    gc.freeze()  # each training collects garbage: among what it made, not among what all share
    chance = random.Random(options.seed)
    survived = lost = inside_save = without_checkpoint = 0
    with tempfile.TemporaryDirectory(prefix="qwendet-kill-") as folder:
        scenes = write_dataset(DEMO, Path(folder) / "train.jsonl", 10, seed=1)
        write_dataset(DEMO, Path(folder) / "val.jsonl", 2, seed=2)
        reference = uninterrupted(scenes, Path(folder) / "reference")
        for number in range(options.kills):
            run = Path(folder) / f"run-{number}"
            process = start(make_config(scenes, run), resume=False)
            kill_somewhere(process, run, chance, reference, inside=number % 3 == 0)
            published = checkpoints(run)
            inside_save += (run / STAGING).exists()
            lost += is_lost(run, published)
            without_checkpoint += not published
            if not published:  # killed before the first save: what is there is only a log
                shutil.rmtree(run, ignore_errors=True)
            finish(start(make_config(scenes, run), resume=bool(published)))
            survived += outcome(run) == reference.outcome
            shutil.rmtree(run)
    print(f"survived {survived} of {options.kills}, lost {lost}")
    figures = {
        "survived": survived,
        "kills": options.kills,
        "lost": lost,
        "killed_inside_a_save": inside_save,
        "killed_before_the_first_save": without_checkpoint,
        "steps": STEPS,
        "uninterrupted_seconds": reference.seconds,
        "save_seconds": reference.save_seconds,
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
