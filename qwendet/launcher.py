"""What ``accelerate launch`` asks for by environment variables, and what of it cannot be had.

Its settings reach the Trainer past the config. Without a GPU the Trainer would turn FSDP2 and DeepSpeed
into plain data parallelism, without a word; a mixed precision of its own would make the config untrue.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from qwendet.errors import Problem

ENGINES = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
PRECISION, COMPILER = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"
YES = ("1", "true", "yes", "y", "on", "t")  # accelerate's own words


def asked_engines() -> list[str]:
    """Which of :data:`ENGINES` the launcher asks for."""
    return [name for name, variable in ENGINES.items() if os.environ.get(variable, "").lower() in YES]


def launcher_problems(*, has_gpu: bool) -> Iterator[Problem]:
    """Find what the launcher asks for and does not get.

    Args:
        has_gpu: whether the model will be trained on a CUDA GPU.
    """
    for engine in asked_engines():
        yield from _engine_problems(engine, ENGINES[engine], has_gpu)
    precision = os.environ.get(PRECISION, "no").lower()
    if precision != "no":
        yield Problem(
            f"the launcher asks for {precision}: it would be that of training alone, and of the head too",
            PRECISION,
            "set mixed_precision to no in accelerate's configuration; train.autocast is for both",
        )
    if os.environ.get(COMPILER, "no").lower() != "no":
        yield Problem(
            f"the launcher asks for torch.compile ({os.environ[COMPILER]}), which is not supported",
            COMPILER,
            "set dynamo_backend to no in accelerate's configuration",
        )


def _engine_problems(engine: str, variable: str, has_gpu: bool) -> Iterator[Problem]:
    if not has_gpu:
        yield Problem(
            f"{engine} needs a CUDA GPU; without one training would not be sharded",
            variable,
            f"start it on a machine with GPUs and model.device auto or cuda, or without {engine}:"
            " torchrun --nproc-per-node N -m qwendet train CONFIG",
        )
    if engine == "DeepSpeed" and importlib.util.find_spec("deepspeed") is None:
        yield Problem("DeepSpeed needs the package deepspeed", variable, "pip install deepspeed")
