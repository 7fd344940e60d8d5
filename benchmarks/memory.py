"""The estimate of a training step's memory against what torch allocates for it.

    python -m benchmarks.memory [--models tiny mini]

Two steps of ``qwendet train`` on the CPU, in float32, for each model and each way to train it. Measured are
torch's own allocations, as its profiler notes every one, and the weights, which are there before. The
resident set of the process says less: it grows by the pages of the libraries that a first step loads, too
(336 MB for the tiny model, of which torch allocates 188). ``mini`` is a random model of the true vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.random_model import write_model
from benchmarks.report import parser, report
from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.collate import Batch
from qwendet.training.build import create_trainer
from qwendet.training.memory import Workload, estimate_memory
from qwendet.training.trainer import DetectionTrainer

WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {},
    "frozen_vision": {"train": {"vision_learning_rate": 0.0}},
    "checkpointing": {"model": {"gradient_checkpointing": True}},
    "lora": {"model": {"lora": {"rank": 8}}},
    "lora_checkpointing": {"model": {"lora": {"rank": 8}, "gradient_checkpointing": True}},
    "recipe": {"model": {"dtype": "bfloat16"}},
    "recipe_frozen_vision": {"model": {"dtype": "bfloat16"}, "train": {"vision_learning_rate": 0.0}},
    "recipe_checkpointing": {"model": {"dtype": "bfloat16", "gradient_checkpointing": True}},
    "recipe_lora": {"model": {"dtype": "bfloat16", "lora": {"rank": 8}}},
}
BATCH_SIZE = {"tiny": 8, "mini": 2}


def make_config(folder: Path, path: str, batch_size: int, **sections: dict[str, Any]) -> Config:
    """Two steps over generated scenes.

    Args:
        folder: gets the scenes, and nothing else: no checkpoint is written.
        path: ``model.path``.
        batch_size: samples of a forward pass.
        sections: settings of one way to train.
    """
    count = 2 * batch_size * sections.get("train", {}).get("gradient_accumulation_steps", 1)
    scenes = write_dataset(DEMO, folder / "train.jsonl", count, seed=1)
    train = {"learning_rate": 1e-3, "batch_size": batch_size, "max_steps": 2, "save_steps": 100}
    values: dict[str, dict[str, Any]] = {
        "model": {"path": path, "device": "cpu", "dtype": "float32"},
        "data": {"train": str(scenes), "labels": list(DEMO.labels)},
        "train": train | {"output_dir": str(folder / "run")},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return build_config(values, "benchmark")


def measure(config: Config) -> tuple[int, int]:
    """Peak bytes of two steps, estimated and measured."""
    trainer = create_trainer(config)
    detector = trainer.bundle.detector
    tensors = [*detector.parameters(), *detector.buffers()]
    weights = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    batches = _without_checkpoints(trainer)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    work = workload(batches)
    config, vlm_config = trainer.bundle.config, detector.vlm.config
    estimate = estimate_memory(config, vlm_config, getattr(torch, config.model.dtype), work, "cpu")
    return estimate.peak, weights + most_allocated(profiler)


def _without_checkpoints(trainer: DetectionTrainer) -> list[Batch]:
    """Have a trainer save nothing, and keep its batches."""
    batches: list[Batch] = []
    collate = trainer.data_collator

    def note(samples: Any) -> Batch:
        batches.append(collate(samples))
        return batches[-1]

    trainer.data_collator = note
    trainer._save_checkpoint = lambda *arguments: None  # type: ignore[method-assign]
    return batches


def workload(batches: list[Batch]) -> Workload:
    """The largest of each that any of the batches holds."""
    count = max(len(batch["input_ids"]) for batch in batches)
    rows, columns = (max(batch["patch_mask"].shape[axis] for batch in batches) for axis in (1, 2))
    return Workload(
        batch_size=count,
        patches=max(int(batch["image_grid_thw"].prod(1).sum()) for batch in batches) // count,
        student_grid=(rows, columns),
        tokens=max(batch["input_ids"].shape[1] for batch in batches),
        supervised=max(int((batch["labels"] != -100).sum()) for batch in batches) // count,
        token_sets=max(1 + bool(len(batch["teacher_rows"])) for batch in batches),
    )


def most_allocated(profiler: profile) -> int:
    """The most bytes that torch's CPU allocator had given out at once, beyond those at the start."""
    noted: Any = profiler.profiler
    events = [event for event in noted.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def cases(folder: Path, models: Sequence[str]) -> Iterator[tuple[str, Config]]:
    """Every way to train each model, with and without a head, by name."""
    for model in models:
        path = model if model == "tiny" else str(write_model(folder / "mini"))
        for way, sections in WAYS.items():
            for has_head in (True, False):
                name = f"{model}_{way}{'' if has_head else '_no_head'}"
                detection = {"enabled": has_head}
                yield name, make_config(folder, path, BATCH_SIZE[model], detection=detection, **sections)


def main() -> None:
    """Measure every case."""
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=tuple(BATCH_SIZE), default=list(BATCH_SIZE))
    options = arguments.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="qwendet-memory-") as folder:
        for name, config in cases(Path(folder), options.models):
            estimate, measured = measure(config)
            figures |= {
                f"{name}_estimate_mb": estimate / 1e6,
                f"{name}_measured_mb": measured / 1e6,
                f"{name}_ratio": estimate / measured,
            }
    ratios = [value for name, value in figures.items() if name.endswith("_ratio")]
    report(figures | {"lowest_ratio": min(ratios), "highest_ratio": max(ratios)}, options.json)


if __name__ == "__main__":
    main()
