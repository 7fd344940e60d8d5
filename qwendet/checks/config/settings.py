"""Checks of the settings alone: what they ask of the machine, and whether they contradict each other."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from qwendet.checks.config.dataset import Check, Dataset
from qwendet.config.schema import EMBEDDED_MODELS, HUB_ID
from qwendet.data.samples import check_label
from qwendet.encoding.image_tokens import known_family
from qwendet.errors import DataError, Problem
from qwendet.files import require_place
from qwendet.training.launcher import launcher_problems

NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")


HIGHEST_LEARNING_RATE = 0.02
"""Above it, AdamW moves each weight by more than most weights are large, in a few dozen steps."""


def model_path(dataset: Dataset) -> list[Problem]:
    """``model.path`` is a folder with a model, or can be the name of one; what can be read is of a family."""
    path = dataset.config.model.path
    if path in EMBEDDED_MODELS:
        return []
    if Path(path).is_dir():
        if any((Path(path) / name).is_file() for name in ("config.json", "adapter_config.json")):
            known_family(dataset.config.model)
            return []
        return [Problem(f"the folder {path} holds no config.json, so no model", "model.path", "give another")]
    if HUB_ID.fullmatch(path):
        known_family(dataset.config.model)
        return []
    return [Problem(f"there is no folder {path}", "model.path", "give tiny, a folder, or a hub id")]


def gpu(dataset: Dataset) -> list[Problem]:
    """``model.device: cuda`` has a GPU."""
    if dataset.config.model.device != "cuda" or has_nvidia_gpu():
        return []
    return [Problem("no NVIDIA GPU was found here", "model.device", "set it to auto or cpu")]


def flash_attention(dataset: Dataset) -> list[Problem]:
    """``flash_attention_2`` finds what it needs."""
    model = dataset.config.model
    if model.attn_implementation != "flash_attention_2":
        return []
    lacking = []
    if model.device == "cpu" or not has_nvidia_gpu():
        lacking.append("an NVIDIA GPU")
    if importlib.util.find_spec("flash_attn") is None:
        lacking.append("the package flash-attn")
    if (
        model.dtype == "float64"
        or dataset.config.train.autocast == "none"
        or (model.dtype == "float32" and dataset.config.train.autocast == "auto")
    ):
        lacking.append("train.autocast bf16: it has no float32")
    fix = "pip install 'qwendet[flash]' on a machine with an NVIDIA GPU, or set it to sdpa"
    return [Problem(f"flash_attention_2 needs {need}", "model.attn_implementation", fix) for need in lacking]


def trackers(dataset: Dataset) -> list[Problem]:
    """What ``train.report_to`` names is installed."""
    if "wandb" not in dataset.config.train.report_to or importlib.util.find_spec("wandb") is not None:
        return []
    fix = "pip install 'qwendet[wandb]', or leave it out"
    return [Problem("wandb needs the package wandb", "train.report_to", fix)]


def launcher(dataset: Dataset) -> Iterable[Problem]:
    """What ``accelerate launch`` asks for can be had here, and is what the config says."""
    has_gpu = dataset.config.model.device != "cpu" and has_nvidia_gpu()
    return launcher_problems(dataset.config, has_gpu=has_gpu)


def has_nvidia_gpu() -> bool:
    """Whether a GPU's driver is here and visible, as far as can be known without torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(NVIDIA_DRIVER.glob("*")) or shutil.which("nvidia-smi") is not None


def train_is_given(dataset: Dataset) -> list[Problem]:
    """There is something to train on."""
    if dataset.config.data.train is not None:
        return []
    return [Problem("data.train is not set", "data.train", "give the path of a JSONL file")]


def labels_are_texts(dataset: Dataset) -> list[Problem]:
    """Every entry of ``data.labels`` can be written into a prompt."""
    problems: list[Problem] = []
    for index, label in enumerate(dataset.config.data.labels or ()):
        try:
            check_label(label, "data.labels", f"entry {index + 1}")
        except DataError as error:
            problems += error.problems
    return problems


def packing_is_possible(dataset: Dataset) -> Iterable[Problem]:
    """Samples that share a row stay apart in the model's layers."""
    family = known_family(dataset.config.model) if dataset.config.train.packing else None
    if family is not None and family.packing_refusal:
        what = f"{family.name} cannot be packed: {family.packing_refusal}"
        yield Problem(what, "train.packing", "set it to false")


def head_learns(dataset: Dataset) -> Iterable[Problem]:
    """A head that is built is trained."""
    config = dataset.config
    if config.detection.enabled and config.train.group_learning_rates()["head"] == 0:
        what = (
            "detection.enabled is true, but the head's learning rate is 0: it stays as it was before training"
        )
        fix = "raise it, or set detection.enabled to false; accept this for a head that is trained already"
        yield Problem(what, "train.head_learning_rate", fix)


def text_is_trained(dataset: Dataset) -> Iterable[Problem]:
    """Answers that are asked for in text are trained on."""
    config, loss = dataset.config, dataset.config.loss
    if config.infer.mode in ("text", "both") and not any(
        (loss.lm_loss_weight, loss.student_loss_weight, loss.teacher_loss_weight)
    ):
        what = f"infer.mode is {config.infer.mode}, but the weights of every text loss are 0"
        yield Problem(what, "loss.lm_loss_weight", "raise it, or set infer.mode to head")


def only_teachers_are_learned(dataset: Dataset) -> Iterable[Problem]:
    """The text that is trained on is not that of the demonstrations alone."""
    config, loss = dataset.config, dataset.config.loss
    if loss.teacher_loss_weight > 0 and loss.student_loss_weight == 0 and loss.lm_loss_weight == 0:
        what = "only the demonstrations' answers are trained on: student_loss_weight and lm_loss_weight are 0"
        if config.detection.enabled and config.infer.mode in ("auto", "head"):
            what += ", and the text loss then only holds the demonstrations in place"
        yield Problem(
            what, "loss.student_loss_weight", "raise it: the student's answer is what inference asks for"
        )


def learning_rates_are_sane(dataset: Dataset) -> Iterable[Problem]:
    """No learning rate is so high that training cannot but diverge."""
    train = dataset.config.train
    for key in type(train).model_fields:
        rate = getattr(train, key) if key.endswith("learning_rate") else None
        if rate is not None and rate > HIGHEST_LEARNING_RATE:
            what = f"the learning rate {rate:g} would destroy pre-trained weights within a few steps"
            fix = "for example 1.0e-5; 1.0e-4 for the head; 1.0e-3 for the tiny model"
            yield Problem(what, f"train.{key}", fix)


def warm_up_ends(dataset: Dataset) -> Iterable[Problem]:
    """The learning rate arrives at its full height."""
    train = dataset.config.train
    if train.warmup_ratio == 1 and train.lr_scheduler != "constant":
        what = "train.warmup_ratio is 1: the learning rate would rise until the last step"
        yield Problem(what, "train.warmup_ratio", "for example 0.03")


def demonstrations_are_given(dataset: Dataset) -> Iterable[Problem]:
    """Samples that are to be given demonstrations are given at least one."""
    data = dataset.config.data
    if data.teacher_ratio > 0 and data.num_teachers == 0:
        what = f"data.teacher_ratio is {data.teacher_ratio:g}, but data.num_teachers is 0: none is ever given"
        yield Problem(what, "data.num_teachers", "set it to 1 or more, or data.teacher_ratio to 0")


def output_can_be_written(dataset: Dataset) -> Iterable[Problem]:
    """The run's folder can be made and written to, and not by everybody."""
    target = Path(dataset.config.train.output_dir).absolute()
    require_place(target, "train.output_dir", is_folder=True)
    mode = target.stat().st_mode if target.exists() else 0
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        what = f"every user of this machine may write to {target}, and so change the checkpoints"
        yield Problem(what, "train.output_dir", f"chmod o-w {shlex.quote(str(target))}")


CHECKS: Mapping[str, Check] = {
    "config.model.path": Check(model_path, "model.path is a model's folder, or can be its name"),
    "config.environment.gpu": Check(gpu, "the device is there"),
    "config.environment.flash_attention": Check(flash_attention, "the attention implementation is there"),
    "config.environment.report_to": Check(trackers, "what shows the run is installed"),
    "config.environment.launcher": Check(launcher, "the launcher asks for nothing else"),
    "config.data.train": Check(train_is_given, "there is a training file"),
    "config.labels.text": Check(labels_are_texts, "data.labels can be written into a prompt"),
    "config.train.packing": Check(packing_is_possible, "samples that share a row stay apart"),
    "config.train.head_frozen": Check(head_learns, "a head that is built is trained"),
    "config.train.learning_rate": Check(learning_rates_are_sane, "no learning rate is too high"),
    "config.train.warmup": Check(warm_up_ends, "the warm-up ends"),
    "config.train.output_dir": Check(output_can_be_written, "the run's folder can be written to"),
    "config.loss.text_untrained": Check(text_is_trained, "answers that are asked for in text are trained on"),
    "config.loss.teachers_only": Check(only_teachers_are_learned, "the student's answer is trained on"),
    "config.teachers.none_given": Check(demonstrations_are_given, "demonstrations that are wanted are given"),
}
