"""What ``accelerate launch`` asks for by environment variables, and what of it cannot be had.

Its settings reach the Trainer past the config. Without a GPU the Trainer would turn FSDP2 into plain data
parallelism, without a word; a mixed precision of its own would make the config untrue.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from qwendet.config.schema import Config
from qwendet.errors import Problem

logger = logging.getLogger("qwendet")

FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
FSDP_VERSION, FSDP_STATE, FSDP_RECOMPUTES = (
    "FSDP_VERSION", "FSDP_STATE_DICT_TYPE", "FSDP_ACTIVATION_CHECKPOINTING",
)  # fmt: skip
PRECISION, COMPILER = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"
YES = ("1", "true", "yes", "y", "on", "t")  # accelerate's own words
WHOLE = "FULL_STATE_DICT"


def num_shards() -> int:
    """Processes that the weights are spread over: under FSDP all of the launcher's, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1")) if _is_on(FSDP) else 1


def save_whole_states() -> None:
    """Have FSDP give whole tensors: a file of parts has a pickle beside it, and nothing is unpickled here."""
    if _is_on(FSDP):
        if os.environ.get(FSDP_STATE, WHOLE) != WHOLE:
            logger.info("FSDP: checkpoints hold whole tensors, not %s", os.environ[FSDP_STATE])
        os.environ[FSDP_STATE] = WHOLE


def launcher_problems(config: Config, *, has_gpu: bool) -> Iterator[Problem]:
    """Find what the launcher asks for and does not get."""
    if _is_on(FSDP):
        yield from _fsdp_problems(config, has_gpu)
    if _is_on(DEEPSPEED):
        yield Problem(
            "DeepSpeed is not supported: ZeRO 3 empties lm_head, whose weight the loss reads outside of its"
            " module, and the checkpoints of every stage are pickles, which are never loaded here",
            DEEPSPEED,
            "take FSDP2, which spreads the same: accelerate config, fsdp_version 2",
        )
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


def _fsdp_problems(config: Config, has_gpu: bool) -> Iterator[Problem]:
    if not has_gpu:
        yield Problem(
            "FSDP needs a CUDA GPU; without one training would not be sharded",
            FSDP,
            "start it on a machine with GPUs and model.device auto or cuda, or without FSDP:"
            " torchrun --nproc-per-node N -m qwendet train CONFIG",
        )
    if os.environ.get(FSDP_VERSION, "1") != "2":
        yield Problem(
            "FSDP 1 is not supported: it flattens the parameters, which have learning rates by part",
            FSDP_VERSION,
            "set fsdp_version to 2 in accelerate's configuration",
        )
    if _is_on(FSDP_RECOMPUTES):
        yield Problem(
            "FSDP's own activation checkpointing renames the layers that a checkpoint is read by",
            FSDP_RECOMPUTES,
            "set fsdp_activation_checkpointing to false, and model.gradient_checkpointing to true",
        )
    if config.train.weights == "bfloat16":
        yield Problem(
            "FSDP spreads trained weights of one type, and the head's are float32",
            "train.weights",
            "set it to float32: each process keeps its share alone",
        )
    if config.model.lora is not None and config.model.lora.load_in_4bit:
        yield Problem(
            "FSDP does not spread a base in 4 bits",
            "model.lora.load_in_4bit",
            "start it without FSDP: torchrun --nproc-per-node N -m qwendet train CONFIG; or set it to false",
        )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in YES
