"""``config.memory``: does a training step fit the device? Known from config.json, before any weight is."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from qwendet.checks.config.suite import MEMORY
from qwendet.checks.runner import Verdict, run_check
from qwendet.config.schema import Config
from qwendet.data.labels import resolve_labels
from qwendet.encoding.image_tokens import require_image_limits
from qwendet.errors import DataError, Problem, Result
from qwendet.loading.weights import base_config
from qwendet.source import find_source
from qwendet.training.launcher import num_shards
from qwendet.training.memory import GIB, LABELS, MemoryEstimate, estimate_memory, largest_workload

PARTS = ("weights", "optimizer", "gradients", "activations", "logits")
PIXELS = "max_pixels"
# What makes a training smaller, the cheapest first; each is added to those before it.
SAVINGS: tuple[tuple[str, str, Any], ...] = (
    ("model", "gradient_checkpointing", True),
    ("train", "batch_size", 1),
    ("data", PIXELS, 1280),  # image tokens
    ("train", "optimizer", "adamw_bnb_8bit"),
    ("model", "lora", {"rank": 16}),
    ("model", "lora", {"rank": 16, "load_in_4bit": True}),
)


def run_memory_check(config: Config) -> list[Result]:
    """Estimate the peak of the largest batch that the config lets through, and hold it against the device."""
    return run_check(MEMORY, _fits, config, config.data.allow)[0]


def _fits(config: Config) -> Verdict:
    num_labels, limit = _num_labels(config), _limit(config)
    estimate = _estimate(config, num_labels)
    parts = ", ".join(f"{name} {getattr(estimate, name) / GIB:.2f}" for name in PARTS)
    spread = f", spread over {num_shards()} processes" if num_shards() > 1 else ""
    peak = f"a training step of the largest batch needs about {estimate.peak / GIB:.2f} GiB a device"
    seen = f"{peak} ({parts}{spread})"
    if limit is None:
        return Verdict(f"{seen}; no limit is set and no GPU is here")
    if estimate.peak <= limit * GIB:
        return Verdict(f"{seen}; {limit:.1f} GiB are there")
    fix = _what_would_fit(config, num_labels, limit)
    return Verdict(seen, (Problem(f"{seen}, but {limit:.1f} GiB are there", "train.max_memory", fix),))


def _num_labels(config: Config) -> int:
    with suppress(DataError):  # what is wrong with labels and data is reported by their own checks
        return len(resolve_labels(config))
    return LABELS


def _estimate(config: Config, num_labels: int) -> MemoryEstimate:
    folder = find_source(config.model.path, config.model.revision, weights=False).folder
    vlm_config = base_config(str(folder))
    most = require_image_limits(config, folder).max_pixels
    work = largest_workload(config, vlm_config, most, num_labels)
    return estimate_memory(config, vlm_config, _dtype(config), work, _device(config), num_shards())


def _device(config: Config) -> str:
    """Where it is trained; with ``train.max_memory`` a GPU that may be on another machine."""
    is_elsewhere = config.train.max_memory is not None and config.model.device == "auto"
    has_gpu = config.model.device != "cpu" and torch.cuda.is_available()
    return "cuda" if has_gpu or is_elsewhere else "cpu"


def _dtype(config: Config) -> torch.dtype:
    if config.model.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.model.dtype)
        return dtype
    is_bfloat16 = _device(config) == "cuda" and config.train.autocast in ("auto", "bf16")
    return torch.bfloat16 if is_bfloat16 else torch.float32


def _limit(config: Config) -> float | None:
    """GiB of the device."""
    if config.train.max_memory is not None:
        return config.train.max_memory
    if config.model.device == "cpu" or not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory) / GIB


def _what_would_fit(config: Config, num_labels: int, limit: float) -> str:
    """The first savings that together make the training fit."""
    source = find_source(config.model.path, config.model.revision, weights=False)
    limits = require_image_limits(config, source.folder)
    changes: dict[str, str] = {}
    for section, key, value in SAVINGS:
        if key == PIXELS:
            value *= limits.unit**2
        values = config.model_dump()
        if values[section][key] == value or (key == PIXELS and value >= limits.max_pixels):
            continue
        values[section][key] = value
        config = Config.model_validate(values)
        shown = str(value).lower() if isinstance(value, bool) else value
        changes[key] = f"{section}.{key}={shown}"
        estimate = _estimate(config, num_labels)
        if estimate.peak <= limit * GIB:
            return f"{', '.join(changes.values())} would need about {estimate.peak / GIB:.2f} GiB"
    return "take a smaller model, or spread it over more GPUs by FSDP2: docs/scaling.md"
