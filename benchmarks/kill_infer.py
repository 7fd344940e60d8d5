"""Kill predictions at random moments, resume them, and compare.

    python -m benchmarks.kill_infer [--kills 30] [--images 48] [--seed 0]

Survived: the resumed run's file is, byte for byte, that of one that nobody killed. Lost: batches that were
kept before the kill and are not there afterwards. Twice: batches that were there and were predicted again.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import tempfile
import time
import traceback
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.report import parser, report
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.files import partial_of
from qwendet.infer import infer
from qwendet.inference.batches import Results
from qwendet.inference.parts import Parts
from qwendet.inference.predictor import Predictor

BATCH_SIZE = 2


def start(scenes: Path, output: Path, *, resume: bool) -> int:
    """Predict in a process of its own, which writes down each batch that it has kept; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        torch.set_num_threads(1)  # makes the fork's own thread pool
        keep = Parts.keep

        def keep_and_tell(self: Parts, batch: int, results: Results) -> None:
            keep(self, batch, results)
            with output.with_suffix(".log").open("a") as log:
                log.write(f"{batch}\n")

        Parts.keep = keep_and_tell  # type: ignore[method-assign]
        infer(Path("tiny"), [scenes], output=output, resume=resume)
        code = 0
    except BaseException:  # noqa: BLE001  # the end of a forked process: nothing may return into the caller
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(process: int) -> None:
    """Wait for a process that is to end by itself."""
    _, status = os.waitpid(process, 0)
    if status:
        raise SystemExit(f"a run ended with status {status}")


def logged(output: Path) -> set[int]:
    """The batches that a run has kept, by its own word; forgotten afterwards."""
    log = output.with_suffix(".log")
    batches = {int(line) for line in log.read_text().splitlines()} if log.exists() else set()
    log.unlink(missing_ok=True)
    return batches


def kept(output: Path) -> set[int]:
    """The batches that are there."""
    files = partial_of(output).glob("process-*.jsonl")
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return {int(line.partition(b"\t")[0]) for line in lines if line.endswith(b"\n")}


def main() -> None:
    """Kill, resume, compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=30)
    arguments.add_argument("--images", type=int, default=48)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    settings = ["model.device=cpu", "model.dtype=float32", f"infer.batch_size={BATCH_SIZE}"]
    predictor = Predictor.from_checkpoint("tiny", overrides=settings)
    patch("qwendet.infer.predictor_of", lambda *_, **__: predictor).start()  # loaded once, for all processes
    gc.collect()
    gc.freeze()
    survived = lost = twice = before_the_first = 0
    with tempfile.TemporaryDirectory(prefix="qwendet-kill-") as folder:
        scenes = write_dataset(DEMO, Path(folder) / "val.jsonl", options.images, seed=1)
        whole = Path(folder) / "whole.jsonl"
        began = time.monotonic()
        finish(start(scenes, whole, resume=False))
        seconds = time.monotonic() - began
        for number in range(options.kills):
            output = Path(folder) / f"{number}.jsonl"
            process = start(scenes, output, resume=False)
            time.sleep(chance.uniform(0, seconds))
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            is_done = output.exists()
            told, there = logged(output), kept(output)
            lost += 0 if is_done else len(told - there)
            before_the_first += not told
            finish(start(scenes, output, resume=True))
            twice += len(logged(output) & there)
            survived += output.read_bytes() == whole.read_bytes()
    print(f"survived {survived} of {options.kills}, lost {lost}, twice {twice}")
    figures = {
        "kills": options.kills,
        "survived": survived,
        "lost": lost,
        "twice": twice,
        "killed_before_the_first_batch": before_the_first,
        "batches": -(-options.images // BATCH_SIZE),
        "uninterrupted_seconds": seconds,
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
