"""A training step of a random full-size Qwen2.5-VL-3B on a GPU, beside the plain Hugging Face Trainer's.

    python -m benchmarks.gpu_step                  about 10 minutes on a card of 80 GB or more
    python -m benchmarks.gpu_step --small          the small model on any device, to try the script

bfloat16 weights, gradient checkpointing, loss term lm, 48 BCCD photographs from $QWENDET_SHARED (../shared):

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
from pathlib import Path
from typing import Any

from benchmarks import train_step
from benchmarks.random_model import write_model, write_photographs
from benchmarks.report import machine, parser, report

WAYS = ("plain", "sdpa", "flash", "packed", "liger", "compiled")
RESULTS = Path(__file__).with_name("results")
SIDE = 8192


def lacking(way: str, device: str) -> str:
    """Why a way cannot run here; empty if it can."""
    if way == "flash" and (device == "cpu" or importlib.util.find_spec("flash_attn") is None):
        return "flash-attn is not installed, or there is no GPU"
    if way == "liger" and (device == "cpu" or importlib.util.find_spec("liger_kernel") is None):
        return "liger-kernel is not installed, or there is no GPU"
    return "torch.compile is tried on a GPU only" if way == "compiled" and device == "cpu" else ""


def settings(folder: Path, way: str, steps: int, device: str) -> dict[str, Any]:
    """The config of one of qwendet's ways."""
    made = train_step.settings(folder, "lm", steps)
    use_flash = way in ("flash", "packed") and not lacking("flash", device)
    made["model"] |= {
        "device": device,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2" if use_flash else "sdpa",
    }
    made["train"] |= {"output_dir": str(folder / f"run-{way}"), "packing": way == "packed"}
    return made


def trainer_of(way: str, folder: Path, steps: int, device: str, clock: Any) -> Any:
    """The trainer of a way."""
    if way == "plain":
        import torch

        training = {"gradient_checkpointing": True, "use_cpu": device == "cpu"}
        loading = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        return train_step.plain_way(folder, steps, clock, training, loading)
    from qwendet.build_trainer import create_trainer
    from qwendet.config_file import build_config

    trainer = create_trainer(build_config(settings(folder, way, steps, device), "benchmark"))
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


def measure(way: str, folder: Path, steps: int, device: str) -> dict[str, float]:
    """Train some steps: seconds a step, tokens a second, model FLOPs a second, peak memory."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer = trainer_of(way, folder, steps, device, Clock())
    work: list[tuple[int, float]] = []
    trainer.data_collator = _counting(trainer.data_collator, trainer.model, work)
    trainer.train()
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    rates = [(tokens / s, flops / s) for s, (tokens, flops) in zip(seconds, work[1:], strict=False)]
    return {
        "seconds_per_step": statistics.median(seconds),
        "tokens_per_second": statistics.median(tokens for tokens, _ in rates),
        "model_teraflops_per_second": statistics.median(flops for _, flops in rates) / 1e12,
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9
        if device == "cuda"
        else train_step.peak_gigabytes(),
    }


def _counting(collator: Any, model: Any, work: list[tuple[int, float]]) -> Any:
    vlm = getattr(model, "vlm", model)
    vision = sum(parameter.numel() for parameter in vlm.model.visual.parameters())
    layers = sum(parameter.numel() for parameter in vlm.model.language_model.layers.parameters())
    lm_head = vlm.lm_head.weight.numel()

    def collate(samples: Any) -> Any:
        batch = collator(samples)
        tokens = int(batch["attention_mask"].sum())
        supervised = int((batch["labels"] != -100).sum())
        products = layers * tokens + vision * len(batch["pixel_values"]) + lm_head * supervised
        work.append((tokens, 6.0 * products))
        return batch

    return collate


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


def run(way: str, folder: Path, options: Any) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_step", "--way", way, "--folder", str(folder)]
    command += ["--steps", str(options.steps), *(["--small"] if options.small else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed with exit code {done.returncode}; its messages are above")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def write_results(figures: dict[str, Any], device_name: str) -> Path:
    """One Markdown file a machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.md"
    rows = [f"| {name} | {value} |" for name, value in figures.items()]
    head = (
        f"# {device_name}\n\n{machine()}. `python -m benchmarks.gpu_step`\n\n| figure | value |\n|---|---|\n"
    )
    path.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Run every way that can run here, name the others."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--steps", type=int, default=12, help="steps of a way; the first does not count (12)"
    )
    arguments.add_argument("--small", action="store_true", help="the small model, on any device")
    arguments.add_argument("--way", choices=WAYS, help="one measurement, for internal use")
    arguments.add_argument("--folder", type=Path, help="model and data, for internal use")
    options = arguments.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.way:
        print(json.dumps(measure(options.way, options.folder, options.steps, device)))
        return
    if device == "cpu" and not options.small:
        report({"skipped": "everything: torch sees no CUDA GPU; --small tries the script"}, options.json)
        return
    figures: dict[str, Any] = {"matrix_teraflops_per_second": matrix_teraflops(device)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", full_size=not options.small, dtype="bfloat16")
        write_photographs(folder / "data", train_step.SAMPLES)
        for way in WAYS:
            if reason := lacking(way, device):
                print(f"{way}: skipped: {reason}", flush=True)
                figures[f"{way}_skipped"] = reason
                continue
            measured = run(way, folder, options)
            measured["mfu"] = measured["model_teraflops_per_second"] / figures["matrix_teraflops_per_second"]
            figures |= {f"{way}_{key}": value for key, value in measured.items()}
            print(f"{way}: {measured['seconds_per_step']:.2f} s a step", flush=True)
    figures["sdpa_over_plain"] = figures["plain_seconds_per_step"] / figures["sdpa_seconds_per_step"]
    report(figures, options.json)
    if not options.small:
        print(f"written to {write_results(figures, torch.cuda.get_device_name())}")


if __name__ == "__main__":
    main()
