"""Our settings in the words of Hugging Face's Trainer, and what of them this machine cannot give."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from pathlib import Path

import torch
from transformers import TrainingArguments

from qwendet.config.schema import Config
from qwendet.errors import EnvironmentLacksError
from qwendet.training.launcher import launcher_problems, num_shards, save_whole_states

logger = logging.getLogger("qwendet")

PACKAGES = {"adamw_bnb_8bit": ("bitsandbytes", "bitsandbytes"), "stable_adamw": ("optimi", "torch-optimi")}
"""Of optimizers: the module that they need, and the package that has it."""
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_MEMORY = 1 << 20
"""Bytes that must be free there: the queues alone of a few worker processes take a tenth of it."""


def require_launcher(config: Config) -> None:
    """Refuse, before a model is loaded, what the launcher asks for and would not get; tell of unused GPUs."""
    has_gpu = config.model.device != "cpu" and torch.cuda.is_available()
    if problems := list(launcher_problems(config, has_gpu=has_gpu)):
        raise EnvironmentLacksError.of(problems)
    gpus = torch.cuda.device_count() if has_gpu and "LOCAL_RANK" not in os.environ else 1
    if gpus > 1:
        command = f"torchrun --nproc-per-node {gpus} -m qwendet train CONFIG"
        logger.warning("one of %d GPUs is used; to train on all of them: %s", gpus, command)


def _require_available(config: Config) -> None:
    if config.train.autocast == "fp16" and config.model.device == "cpu":  # accelerate would leave it out
        raise EnvironmentLacksError(
            "train.autocast fp16 needs a GPU", "train.autocast", "set it to auto, or model.dtype to bfloat16"
        )
    if config.data.num_workers and _shared_memory_left() < LEAST_SHARED_MEMORY:
        raise shared_memory_error("worker processes (data.num_workers) need shared memory")
    package, name = PACKAGES.get(config.train.optimizer, ("torch", "torch"))
    if importlib.util.find_spec(package) is None:
        raise EnvironmentLacksError(
            f"{config.train.optimizer} needs the package {name}", "train.optimizer", f"pip install {name}"
        )


def _shared_memory_left() -> float:
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else float("inf")


def shared_memory_error(what: str) -> EnvironmentLacksError:
    """What to do where worker processes cannot hand batches on."""
    return EnvironmentLacksError(
        f"{what}, and it holds {shutil.disk_usage(SHARED_MEMORY).total:,} bytes",
        str(SHARED_MEMORY),
        "start the container with more (docker run --shm-size=8g), or have the training process read the"
        " samples by itself (data.num_workers: 0); a run that has checkpoints goes on with --resume",
    )


def training_arguments(config: Config) -> TrainingArguments:
    """Translate the settings."""
    train = config.train
    _require_available(config)
    save_whole_states()
    arguments = TrainingArguments(
        output_dir=train.output_dir,
        max_steps=train.max_steps or -1,
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=max(train.group_learning_rates().values()),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm or float("inf"),
        lr_scheduler_type=train.lr_scheduler,
        optim=train.optimizer,
        # The detector's own autocast is that of inference, too; for fp16 the loss is scaled besides.
        fp16=train.autocast == "fp16",
        # In bfloat16 a second moment never falls at 0.999: a step of it is below half of the last digit.
        adam_beta2=0.99 if train.optimizer == "stable_adamw" else 0.999,
        seed=train.seed,
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="no" if train.eval_steps is None else "steps",  # and after the last one
        eval_steps=train.eval_steps,
        save_steps=train.save_steps,
        save_total_limit=train.save_total_limit,
        report_to="none",  # qwendet.training.loggers shows what is logged
        use_cpu=config.model.device == "cpu",
        dataloader_num_workers=config.data.num_workers,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,  # every parameter has a gradient, of 0 where a rank has no boxes
        # Spread in each micro-batch: added up first, gradients would be whole on every process.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": num_shards() > 1}},
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:  # the Trainer would make nn.DataParallel, which splits patches and labels
        arguments._n_gpu = 1
    return arguments
