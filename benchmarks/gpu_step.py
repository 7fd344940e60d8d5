"""A training step of a random full-size Qwen2.5-VL-3B on a GPU, beside the plain Hugging Face Trainer's.

    python -m benchmarks.gpu_step                  about 10 minutes on a card of 80 GB or more
    python -m benchmarks.gpu_step --small          the small model on any device, to try the script

float32 weights under bf16 autocast, gradient checkpointing, loss term lm, 48 BCCD photographs from
$QWENDET_SHARED (../shared):

    plain     the Trainer with the model's own loss, SDPA
    sdpa      qwendet, the same batches
    flash     qwendet with Flash Attention 2, where flash-attn is installed
    packed    qwendet with Flash Attention 2 (else SDPA) and train.packing
    liger     sdpa with Liger's RMSNorm, SwiGLU and rotary kernels, where liger-kernel is installed
    compiled  sdpa with the language model's layers under torch.compile

What cannot run here is named with its reason. Model FLOPs are 6 × parameters × tokens, vision parameters by
patches and lm_head by supervised tokens, attention's own products left out; MFU is over the card's measured
product of two 8192² bfloat16 matrices. Results go to benchmarks/results/ as one Markdown file a machine.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import train_step
from benchmarks.random_model import write_model, write_photographs
from benchmarks.report import machine, parser, report, shown

WAYS = ("plain", "sdpa", "flash", "packed", "liger", "compiled")
RESULTS = Path(__file__).with_name("results")
SIDE = 8192
WORKERS = 4


def lacking(way: str, device: str) -> str:
    """Why a way cannot run here; empty if it can."""
    if way == "flash" and (device == "cpu" or importlib.util.find_spec("flash_attn") is None):
        return "flash-attn is not installed, or there is no GPU"
    if way == "liger" and (device == "cpu" or importlib.util.find_spec("liger_kernel") is None):
        return "liger-kernel is not installed, or there is no GPU"
    return "torch.compile is tried on a GPU only" if way == "compiled" and device == "cpu" else ""


def settings(folder: Path, way: str, options: Any) -> dict[str, Any]:
    """The config of one of qwendet's ways."""
    device = options.device
    made = train_step.settings(folder, "lm", options.steps, options.batch_size)
    use_flash = way in ("flash", "packed") and not lacking("flash", device)
    made["model"] |= {
        "device": device,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2" if use_flash else "sdpa",
    }
    made["data"]["num_workers"] = WORKERS if device == "cuda" else 0
    made["train"] |= {"output_dir": str(folder / f"run-{way}"), "packing": way == "packed"}
    return made


def trainer_of(way: str, folder: Path, options: Any, clock: Any) -> Any:
    """The trainer of a way."""
    device = options.device
    if way == "plain":
        import torch

        training = {
            "bf16": True,
            "gradient_checkpointing": True,
            "use_cpu": device == "cpu",
            "dataloader_num_workers": WORKERS if device == "cuda" else 0,
        }
        loading = {"dtype": torch.float32, "attn_implementation": "sdpa"}
        return train_step.plain_way(folder, options.steps, clock, training, loading, options.batch_size)
    from qwendet.config.load import build_config
    from qwendet.training.build import create_trainer

    trainer = create_trainer(build_config(settings(folder, way, options), "benchmark"))
    trainer.add_callback(clock)
    if way == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2_5_vl

        apply_liger_kernel_to_qwen2_5_vl(
            model=trainer.bundle.detector.vlm, fused_linear_cross_entropy=False, cross_entropy=False
        )
    if way == "compiled":
        for layer in trainer.bundle.detector.vlm.model.language_model.layers:
            layer.compile(dynamic=True)
    return trainer


def measure(way: str, folder: Path, options: Any) -> dict[str, float]:
    """Train some steps: seconds a step, tokens a second, model FLOPs a second, peak memory."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = False  # tens of gigabytes at the end
            if options.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer = trainer_of(way, folder, options, Clock())
    counts: list[Any] = []
    trainer.training_step = _counting(trainer.training_step, counts)
    trainer.train()
    work = [_work(trainer.model, *map(int, step)) for step in counts]
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    rates = [(tokens / s, flops / s) for s, (tokens, flops) in zip(seconds, work[1:], strict=False)]
    return {
        "seconds_per_step": statistics.median(seconds),
        "tokens_per_second": statistics.median(tokens for tokens, _ in rates),
        "model_teraflops_per_second": statistics.median(flops for _, flops in rates) / 1e12,
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9
        if options.device == "cuda"
        else train_step.peak_gigabytes(),
    }


def _counting(training_step: Any, counts: list[Any]) -> Any:
    """Note tokens, supervised tokens and patches of each step, without waiting for the device."""

    def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        supervised = (inputs["labels"] != -100).sum()
        counts.append((inputs["attention_mask"].sum(), supervised, len(inputs["pixel_values"])))
        return training_step(model, inputs, *args, **kwargs)

    return counted


def _work(model: Any, tokens: int, supervised: int, patches: int) -> tuple[int, float]:
    """Tokens and model FLOPs of a step."""
    vlm = getattr(model, "vlm", model)
    vision = sum(parameter.numel() for parameter in vlm.model.visual.parameters())
    layers = sum(parameter.numel() for parameter in vlm.model.language_model.layers.parameters())
    lm_head = vlm.lm_head.weight.numel()
    return tokens, 6.0 * (layers * tokens + vision * patches + lm_head * supervised)


def matrix_teraflops(device: str) -> float:
    """What the card reaches in a product of two bfloat16 matrices."""
    import torch

    side = SIDE if device == "cuda" else SIDE // 8
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(10):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * side**3 / (time.perf_counter() - started) / 1e12)
    return statistics.median(rates)


def run(way: str, folder: Path, options: Any) -> dict[str, Any]:
    """Measure in a process of its own; ``skipped`` or ``failed`` says why there are no figures."""
    if reason := lacking(way, options.device):
        print(f"{way}: skipped: {reason}", flush=True)
        return {"skipped": reason}
    command = [sys.executable, "-m", "benchmarks.gpu_step", "--way", way, "--folder", str(folder)]
    command += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{way}: failed with exit code {done.returncode}; its messages are above", flush=True)
        return {"failed": f"exit code {done.returncode}"}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{way}: {measured['seconds_per_step']:.3f} s a step", flush=True)
    return measured


def prepare(folder: Path, device: str, *, small: bool) -> float:
    """Write model and data; return the card's rate."""
    write_model(folder / "model", full_size=not small, dtype="bfloat16", device=device)
    write_photographs(folder / "data", train_step.SAMPLES)
    return matrix_teraflops(device)


def figures_of(runs: dict[str, dict[str, Any]], matrix_rate: float) -> dict[str, Any]:
    """All figures by name, with the share of the card's rate and the ratio to the plain Trainer."""
    figures: dict[str, Any] = {"matrix_teraflops_per_second": matrix_rate}
    plain = runs.get("plain", {}).get("seconds_per_step")
    for way, measured in runs.items():
        if seconds := measured.get("seconds_per_step"):
            measured["mfu"] = measured["model_teraflops_per_second"] / matrix_rate
            measured |= {"over_plain": plain / seconds} if plain else {}
        figures |= {f"{way}_{key}": value for key, value in measured.items()}
    return figures


def write_results(figures: dict[str, Any], device_name: str, options: Any) -> Path:
    """One Markdown file a machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.md"
    command = f"python -m benchmarks.gpu_step --steps {options.steps} --batch-size {options.batch_size}"
    rows = [f"| {name} | {shown(value)} |" for name, value in figures.items()]
    head = f"# {device_name}\n\n{machine()}. `{command}`\n\n| figure | value |\n|---|---|\n"
    path.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Run every way that can run here, name the others."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--steps", type=int, default=12, help="steps of a way; the first does not count (12)"
    )
    arguments.add_argument("--batch-size", type=int, default=8, help="samples a step (8)")
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to run (all)")
    arguments.add_argument("--small", action="store_true", help="the small model, on any device")
    arguments.add_argument("--way", choices=WAYS, help="one measurement, for internal use")
    arguments.add_argument("--folder", type=Path, help="model and data, for internal use")
    options = arguments.parse_args()
    import torch

    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.way:
        print(json.dumps(measure(options.way, options.folder, options)))
        return
    if options.device == "cpu" and not options.small:
        report({"skipped": "everything: torch sees no CUDA GPU; --small tries the script"}, options.json)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with get_context("spawn").Pool(1) as pool:  # this process takes nothing of the card's memory
            rate = pool.apply(prepare, (folder, options.device), {"small": options.small})
        runs = {way: run(way, folder, options) for way in options.ways}
    figures = figures_of(runs, rate)
    report(figures, options.json)
    if not options.small:
        print(f"written to {write_results(figures, torch.cuda.get_device_name(), options)}", file=sys.stderr)
    if any("failed" in measured for measured in runs.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
