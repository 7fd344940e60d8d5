"""Seconds and memory of a training step beside the plain Hugging Face Trainer's, in one run.

    python -m benchmarks.train_step              about 18 minutes on two cores, 15 GB
    python -m benchmarks.train_step --family qwen3_vl
    python -m benchmarks.train_step --rounds 1 --steps 4

On a random model of the family (Qwen2.5-VL) with the true vocabulary and 48 BCCD photographs from
$QWENDET_SHARED (../shared), in float32, batch 4, AdamW, full fine-tuning on the JSON answers:

    plain      the Trainer with the model's own loss (benchmarks/plain_training.py)
    lm         qwendet with the loss term lm alone: the same batches, the same loss
    teachers   qwendet with one demonstration a sample and all terms of the text
    head       qwendet with the detection head
    packed     lm with train.packing

Each way is a process of its own, so that its peak memory is its own. lm and one of the others take their
steps in turn, and a ratio is the median of those of neighbouring steps: other work on the machine disturbs
both. The first step does not count. It fails if the loss of lm is not that of plain to 1e-5.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.random_model import FOLDERS, MAX_PIXELS, PHOTOGRAPHS, write_model, write_photographs
from benchmarks.report import parser, report

WAYS = ("plain", "lm", "teachers", "head", "packed")
LOSS_TOLERANCE = 1e-5
LM_ALONE = {"teacher_loss_weight": 0.0, "student_loss_weight": 0.0}
SAMPLES, BATCH_SIZE, LEARNING_RATE = 48, 4, 1e-5


def settings(folder: Path, way: str, steps: int, batch_size: int = BATCH_SIZE) -> dict[str, Any]:
    """The config of one of qwendet's ways."""
    return {
        "model": {"path": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "data": {
            "train": str(folder / "data" / "photographs.jsonl"),
            "root": str(PHOTOGRAPHS),
            "max_pixels": MAX_PIXELS,
            "teacher_ratio": 1.0 if way == "teachers" else 0.0,
        },
        "detection": {"enabled": way == "head"},
        "loss": LM_ALONE if way in ("lm", "packed") else {},
        "train": {
            "output_dir": str(folder / f"run-{way}"),
            "max_steps": steps,
            "batch_size": batch_size,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "constant",
            "optimizer": "adamw_torch_fused",  # the Trainer's own default
            "logging_steps": 1,
            "save_steps": 1_000_000,
            "packing": way == "packed",
        },
    }


def measure(way: str, folder: Path, steps: int) -> dict[str, Any]:
    """Train some steps, each when a line comes on stdin, and tell of each the seconds, tokens and loss.

    The first step is taken at once. Each one's end is told by an empty object on stdout.
    """
    from transformers import TrainerCallback

    started = time.perf_counter()
    seconds: list[float] = []
    peak = 0.0

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            nonlocal started, peak
            seconds.append(time.perf_counter() - started)
            peak = peak_gigabytes()  # the checkpoint that qwendet writes at the end is another matter
            print("{}", flush=True)
            sys.stdin.readline()
            started = time.perf_counter()

    trainer = plain_way(folder, steps, Clock()) if way == "plain" else _ours(way, folder, steps, Clock())
    shapes: list[tuple[int, int]] = []
    trainer.data_collator = _counting(trainer.data_collator, shapes)
    trainer.train()
    return {
        "seconds": seconds[1:],
        "first": seconds[0],
        "tokens": [real for real, _ in shapes[1:steps]],
        "padded": [padded for _, padded in shapes[1:steps]],
        "loss": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "peak": peak,
    }


def _counting(collator: Any, shapes: list[tuple[int, int]]) -> Any:
    def collate(samples: Any) -> Any:
        batch = collator(samples)
        shapes.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
        return batch

    return collate


def _ours(way: str, folder: Path, steps: int, clock: Any) -> Any:
    from qwendet.config.load import build_config
    from qwendet.training.build import create_trainer

    trainer = create_trainer(build_config(settings(folder, way, steps), "benchmark"))
    trainer.add_callback(clock)
    return trainer


def plain_way(
    folder: Path,
    steps: int,
    clock: Any,
    training: dict[str, Any] | None = None,
    loading: dict[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """The plain Trainer on the batches that qwendet makes.

    Args:
        folder: model and data.
        steps: optimizer steps.
        clock: a callback.
        training: more training arguments.
        loading: more arguments of ``from_pretrained``.
        batch_size: samples a step.
    """
    from transformers import TrainingArguments

    from benchmarks.plain_training import Collator, plain_trainer
    from qwendet.config.load import build_config
    from qwendet.config.schema import DEFAULT_REQUEST
    from qwendet.encoding.dataset import TrainingSamples
    from qwendet.families.choose import family_of
    from qwendet.training.sampler import EpochOrder

    lines = (folder / "data" / "photographs.jsonl").read_bytes().splitlines(keepends=True)
    unread: Any = None
    ordered = TrainingSamples(build_config(settings(folder, "lm", steps), "benchmark"), encoder=unread)
    samples = [json.loads(lines[index]) for index in EpochOrder(ordered, batch_size, seed=0)]
    names = ", ".join(sorted({item["desc"] for sample in samples for item in sample["objects"]}))
    request = DEFAULT_REQUEST.replace("{labels}", names)
    kind = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["model_type"]
    family = family_of(kind, str(folder))
    collator = Collator(
        folder / "model",
        PHOTOGRAPHS,
        request,
        family.system_prompt,
        MAX_PIXELS,
        thousandths=family.frame == "thousandths",
    )
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "run-plain"),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        **(training or {}),
    }
    return plain_trainer(
        folder / "model", samples, collator, TrainingArguments(**arguments), clock, **(loading or {})
    )


def peak_gigabytes() -> float:
    """The largest this process has been (Linux), in 10⁹ bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e9


Run = dict[str, Any]
"""What :func:`measure` tells of a way."""


def figures(rounds: list[dict[str, Run]]) -> dict[str, float]:
    """Medians, and the ratios of neighbouring steps; a round holds ways that took theirs in turn."""
    result: dict[str, float] = {}
    for way in (way for way in WAYS if any(way in runs for runs in rounds)):
        runs = [one[way] for one in rounds if way in one]
        seconds = statistics.median(each for run in runs for each in run["seconds"])
        result[f"{way}_seconds_per_step"] = seconds
        result[f"{way}_samples_per_second"] = BATCH_SIZE / seconds
        result[f"{way}_milliseconds_per_token"] = 1000 * statistics.median(
            each for run in runs for each in _per_token(run)
        )
        result[f"{way}_padding_share"] = 1 - sum(runs[0]["tokens"]) / sum(runs[0]["padded"])
        result[f"{way}_seconds_to_first_step"] = statistics.median(run["first"] for run in runs)
        result[f"{way}_peak_gigabytes"] = max(run["peak"] for run in runs)
    for way in ("plain", "teachers", "head", "packed"):
        pairs = [(one[way], one["lm"]) for one in rounds if {way, "lm"} <= set(one)]
        ratios = [
            of_way / of_lm for pair in pairs for of_way, of_lm in zip(*map(_per_token, pair), strict=True)
        ]
        if pairs and way == "plain":
            result["speed_ratio"] = statistics.median(ratios)
            result["memory_ratio"] = result["lm_peak_gigabytes"] / result["plain_peak_gigabytes"]
            losses = zip(*(run["loss"] for run in pairs[0]), strict=True)
            result["loss_difference"] = max(abs(one - other) for one, other in losses)
        elif pairs:
            result[f"{way}_over_lm_per_token"] = statistics.median(ratios)
    return result


def _per_token(run: Run) -> list[float]:
    """Seconds a token of each step."""
    return [seconds / tokens for seconds, tokens in zip(run["seconds"], run["tokens"], strict=True)]


def prepare(folder: Path, family: str) -> None:
    """Write model and data."""
    write_model(folder / "model", family)
    write_photographs(folder / "data", SAMPLES)


class Trainee:
    """A way in a process of its own, which takes a step when it is told to."""

    def __init__(self, way: str, folder: Path, steps: int) -> None:
        command = [sys.executable, "-m", "benchmarks.train_step", "--way", way]
        command += ["--folder", str(folder), "--steps", str(steps)]
        self.way = way
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def report(self) -> Run:
        """Wait for what it tells next: nothing of a step, at the end of all."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "{}\n" or line.startswith('{"'):  # the plain Trainer prints its rows, too
                told: Run = json.loads(line)
                return told
        code = self.process.wait()
        raise SystemExit(f"{self.way} failed with exit code {code}; its messages are above")

    def go_on(self) -> Run:
        """Let it take its next step, or end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.report()


def take_turns(ways: Sequence[str], folder: Path, steps: int) -> dict[str, Run]:
    """Train in each of the ways, one step of each after the other."""
    trainees = []
    try:
        for way in ways:
            trainees.append(Trainee(way, folder, steps))
            trainees[-1].report()
        for _ in range(steps - 1):
            for trainee in trainees:
                trainee.go_on()
        return {trainee.way: trainee.go_on() for trainee in trainees}
    finally:
        for trainee in trainees:
            trainee.process.kill()
            trainee.process.wait()


def main() -> None:
    """Build model and data once, run the ways in turn, report."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--family", choices=list(FOLDERS), default="qwen2_5_vl", help="of the model (qwen2_5_vl)"
    )
    arguments.add_argument("--rounds", type=int, default=2, help="times each way runs (2)")
    arguments.add_argument(
        "--steps", type=int, default=6, help="steps of a run; the first does not count (6)"
    )
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to run (all)")
    arguments.add_argument("--way", choices=WAYS, help="one measurement, for internal use")
    arguments.add_argument("--folder", type=Path, help="model and data, for internal use")
    options = arguments.parse_args()
    if options.steps < 2:
        raise SystemExit("--steps must be at least 2: the first step does not count")
    if options.way:
        print(json.dumps(measure(options.way, options.folder, options.steps)))
        return
    others = [way for way in options.ways if way != "lm"]
    groups = [(way, "lm") if "lm" in options.ways else (way,) for way in others] or [("lm",)]
    rounds: list[dict[str, Run]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with get_context("spawn").Pool(1) as pool:  # torch stays out of this process's memory
            pool.apply(prepare, (folder, options.family))
        for number in range(1, options.rounds + 1):
            for group in groups:
                rounds.append(take_turns(group, folder, options.steps))
                for way, run in rounds[-1].items():
                    seconds = " ".join(f"{each:.2f}" for each in run["seconds"])
                    print(
                        f"round {number}: {way}: {run['peak']:.2f} GB, seconds a step: {seconds}", flush=True
                    )
    found = figures(rounds)
    report(found, options.json)
    if found.get("loss_difference", 0.0) > LOSS_TOLERANCE:
        raise SystemExit(f"the losses of plain and lm differ by more than {LOSS_TOLERANCE}")


if __name__ == "__main__":
    main()
