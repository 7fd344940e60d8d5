"""Checks of the config as a whole: what it asks of the machine, and whether it suits its data."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwendet.checks.samples import PARSE, RULES, Scan, Split
from qwendet.config import EMBEDDED_MODELS, Config
from qwendet.data.samples import check_label
from qwendet.errors import DataError, Problem

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Survey:
    """The config, and what its sample files hold."""

    config: Config
    scans: Mapping[Split, Scan]


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        find: returns the problems.
        good: what is so when there are none.
        needs: files without which it is skipped.
    """

    find: Callable[[Survey], Iterable[Problem]]
    good: str
    needs: tuple[Split, ...] = ()


def model_path(survey: Survey) -> list[Problem]:
    """``model.path`` is a folder with a model, or can be the name of one."""
    path = survey.config.model.path
    if path in EMBEDDED_MODELS:
        return []
    if Path(path).is_dir():
        if any((Path(path) / name).is_file() for name in ("config.json", "adapter_config.json")):
            return []
        return [Problem(f"the folder {path} holds no config.json, so no model", "model.path", "give another")]
    if HUB_ID.fullmatch(path):
        return []
    return [Problem(f"there is no folder {path}", "model.path", "give tiny, a folder, or a hub id")]


def gpu(survey: Survey) -> list[Problem]:
    """``model.device: cuda`` has a GPU."""
    if survey.config.model.device != "cuda" or has_nvidia_gpu():
        return []
    return [Problem("no NVIDIA GPU was found here", "model.device", "set it to auto or cpu")]


def flash_attention(survey: Survey) -> list[Problem]:
    """``flash_attention_2`` finds what it needs."""
    model = survey.config.model
    if model.attn_implementation != "flash_attention_2":
        return []
    lacking = []
    if model.device == "cpu" or not has_nvidia_gpu():
        lacking.append("an NVIDIA GPU")
    if importlib.util.find_spec("flash_attn") is None:
        lacking.append("the package flash-attn")
    if model.dtype not in ("auto", "bfloat16", "float16"):
        lacking.append(f"bfloat16 or float16 instead of {model.dtype}")
    fix = "pip install 'qwendet[flash]' on a machine with an NVIDIA GPU, or set it to sdpa"
    return [Problem(f"flash_attention_2 needs {need}", "model.attn_implementation", fix) for need in lacking]


def has_nvidia_gpu() -> bool:
    """Whether a GPU's driver is here and visible, as far as can be told without torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(NVIDIA_DRIVER.glob("*")) or shutil.which("nvidia-smi") is not None


def train_is_given(survey: Survey) -> list[Problem]:
    """There is something to train on."""
    if survey.config.data.train is not None:
        return []
    return [Problem("data.train is not set", "data.train", "give the path of a JSONL file")]


def files_hold_samples(survey: Survey) -> list[Problem]:
    """No sample file is empty, or empty once broken samples are left out."""
    problems = []
    leaves_out = survey.config.data.on_bad_sample == "skip"
    for split, scan in survey.scans.items():
        if scan.num_samples == 0:
            problems.append(Problem("the file holds no samples", str(scan.path), f"correct data.{split}"))
        elif leaves_out and scan.num_usable == 0:
            problems.append(Problem("no sample of the file is usable", str(scan.path), "mend its samples"))
    return problems


def labels_are_texts(survey: Survey) -> list[Problem]:
    """Every entry of ``data.labels`` can be written into a prompt."""
    problems: list[Problem] = []
    for index, label in enumerate(survey.config.data.labels or ()):
        try:
            check_label(label, "data.labels", f"entry {index + 1}")
        except DataError as error:
            problems += error.problems
    return problems


def allow_names_checks(survey: Survey) -> list[Problem]:
    """Every entry of ``data.allow`` is the id of a check."""
    known = [PARSE, *RULES, *CHECKS]
    problems = []
    for id in survey.config.data.allow:
        if id not in known:
            close = difflib.get_close_matches(id, known, n=1, cutoff=0.5)
            fix = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            problems.append(Problem(f"{id!r} is the id of no check", "data.allow", fix))
    return problems


def val_labels_are_trained(survey: Survey) -> list[Problem]:
    """Every label of the validation samples is in training samples too."""
    train, val = survey.scans["train"], survey.scans["val"]
    return [
        Problem(
            f"the label {label!r} is in validation only: it would never be learned",
            where,
            "add training samples with it, or remove it from validation",
        )
        for label, where in val.labels.items()
        if label not in train.labels
    ]


def head_is_wanted(survey: Survey) -> list[Problem]:
    """With boxes in the data, the detection head is on."""
    scan = survey.scans["train"]
    if survey.config.detection.enabled or scan.num_boxes == 0:
        return []
    what = f"detection.enabled is false, but {scan.path.name} has {scan.num_boxes} boxes: no head learns"
    fix = "set it to true; for text answers only, add config.detection.off_with_boxes to data.allow"
    return [Problem(what, "detection.enabled", fix)]


def head_has_boxes(survey: Survey) -> list[Problem]:
    """With the detection head on, there are boxes to learn."""
    scan = survey.scans["train"]
    if not survey.config.detection.enabled or scan.num_boxes > 0:
        return []
    what = f"detection.enabled is true, but {scan.path.name} has no box: the head would learn to find nothing"
    return [Problem(what, "detection.enabled", "give training samples with boxes, or set it to false")]


CHECKS: Mapping[str, Check] = {
    "config.model.path": Check(model_path, "model.path is a model's folder, or can be its name"),
    "config.environment.gpu": Check(gpu, "the device is there"),
    "config.environment.flash_attention": Check(flash_attention, "the attention implementation is there"),
    "config.data.train": Check(train_is_given, "there is a training file"),
    "config.data.allow": Check(allow_names_checks, "data.allow names checks only"),
    "config.data.empty": Check(files_hold_samples, "every file holds samples"),
    "config.labels.text": Check(labels_are_texts, "data.labels can be written into a prompt"),
    "config.labels.only_in_validation": Check(
        val_labels_are_trained, "every validation label is trained", needs=("train", "val")
    ),
    "config.detection.off_with_boxes": Check(head_is_wanted, "no boxes go unused", needs=("train",)),
    "config.detection.on_without_boxes": Check(
        head_has_boxes, "the head has boxes to learn", needs=("train",)
    ),
}
