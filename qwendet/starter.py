"""A new project: a short commented config, and data where it is generated or converted.

init_project ─► data: generated shapes | JSONL where it lies | COCO, VOC, YOLO converted into DIR/data
             ─► settings for the model and the images' size ─► DIR/config.yaml, written last
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from qwendet.config import Config
from qwendet.data.formats.convert import Conversion, conversion_notes, convert_dataset
from qwendet.data.formats.detect import detect_format
from qwendet.data.images import image_size
from qwendet.data.samples import SampleFile
from qwendet.data.shapes import DEMO, write_dataset
from qwendet.errors import ConfigError, DataError
from qwendet.files import atomic_file, atomic_folder
from qwendet.progress import Advance, Tracker

TINY = "tiny"
DEFAULT_MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
GENERATED = {"train": 768, "val": 64}
"""Generated images of each split."""
SEEDS = {"train": 1, "val": 2}
TINY_MAX_PIXELS = 50_176
"""224×224: what two CPU cores can train on in minutes."""
FULL_MAX_PIXELS = 1_003_520
"""1280 image tokens of 28×28 pixels."""
LOOKED_AT = 200
"""Images whose size decides on ``data.max_pixels``."""


Settings = Mapping[str, Mapping[str, Any]]

TINY_TRAIN: Mapping[str, Any] = {
    "output_dir": "run",
    "max_steps": 300,
    "batch_size": 8,
    "learning_rate": 1.0e-3,
    "head_learning_rate": 1.0e-3,
    "save_steps": 100,
    "logging_steps": 10,
}
FULL: Settings = {
    "model": {"dtype": "auto", "attn_implementation": "auto", "gradient_checkpointing": True},
    "data": {"max_pixels": FULL_MAX_PIXELS, "num_workers": 2},
    "train": {
        "output_dir": "run",
        "epochs": 3.0,
        "batch_size": 1,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1.0e-5,
        "head_learning_rate": 1.0e-4,
        "save_steps": 500,
        "logging_steps": 10,
    },
}
HEADER = "# Every other setting has its default; `qwendet validate-config` tells what is wrong here.\n"


@dataclass(frozen=True)
class InitSummary:
    """What was written.

    Attributes:
        config: the config.
        next_command: what to run next.
        notes: what else a user should know, in words.
    """

    config: Path
    next_command: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Data:
    """Sample files of the new config, relative to it or absolute."""

    train: str
    val: str | None
    train_file: Path | None = None
    notes: list[str] = field(default_factory=list)


def init_project(
    directory: Path, *, tiny: bool, model: str | None, data: Path | None, tracker: Tracker
) -> InitSummary:
    """Write ``directory/config.yaml`` and the data that it needs.

    Args:
        directory: made if it is absent.
        tiny: the embedded model on generated shapes.
        model: ``model.path``; ``None`` is ``tiny`` with ``tiny``, else ``Qwen/Qwen2.5-VL-3B-Instruct``.
        data: a JSONL file, a folder that ``data convert`` wrote, or a COCO, VOC or YOLO data set, which is
            converted into ``directory/data``; ``None`` leaves the files to the user.
        tracker: shows progress.

    Raises:
        ConfigError: if a config is there already, or the wishes exclude each other.
        DataError: if the data cannot be used or written.
    """
    config = directory / "config.yaml"
    if config.exists():
        raise ConfigError("there is a config already", str(config), "remove it, or give another folder")
    if tiny and data is not None:
        command = shlex.join(["qwendet", "init", str(directory), "--model", TINY, "--data", str(data)])
        raise ConfigError(
            "--tiny generates data, --data brings it",
            "command line",
            f"for the small model on your data: {command}",
        )
    path = _model_path(model, directory) if model else TINY if tiny else DEFAULT_MODEL
    found = _generate(directory, tracker) if tiny else _find_data(directory, data, tracker)
    settings = _settings(path, found, generated=tiny)
    with atomic_file(config) as staging:
        staging.write_text(render(settings), encoding="utf-8")
    command = "train" if found.train_file else "validate-config"
    return InitSummary(config, shlex.join(["qwendet", command, str(config)]), tuple(found.notes))


# Data


def _generate(directory: Path, tracker: Tracker) -> _Data:
    """Draw the generated data set into ``directory/data``."""
    folder = directory / "data"
    if folder.exists():
        raise ConfigError("expected no folder of this name yet", str(folder), "remove it, or init elsewhere")
    with atomic_folder(folder) as staging:
        for split, count in GENERATED.items():
            with tracker(f"drawing {split} images", count) as advance:
                file = staging / f"{split}.jsonl"
                write_dataset(DEMO, file, count, SEEDS[split], progress=partial(_advance, advance))
    return _Data("data/train.jsonl", "data/val.jsonl", folder / "train.jsonl")


def _advance(advance: Advance, done: int) -> None:
    advance(done, "")


def _find_data(directory: Path, data: Path | None, tracker: Tracker) -> _Data:
    if data is None:
        note = (
            "Put your samples into data/train.jsonl and data/val.jsonl, or correct the paths in the config."
        )
        return _Data("data/train.jsonl", "data/val.jsonl", notes=[note])
    if detect_format(data) != "jsonl":
        report = convert_dataset(data, directory / "data", Conversion(), tracker)
        return _of_splits(directory / "data", directory, conversion_notes(report))
    if data.is_dir():
        return _of_splits(data, directory, [])
    note = "No validation file is set: name one in data.val, or nothing is measured after training."
    return _Data(_from_config(data, directory), None, data, [note])


def _of_splits(folder: Path, directory: Path, notes: list[str]) -> _Data:
    """Training and validation files of a folder as ``data convert`` writes it."""
    train, val, test, whole = (folder / f"{name}.jsonl" for name in ("train", "val", "test", "all"))
    if not train.is_file():
        train = whole
    if not train.is_file():
        raise DataError(
            "expected train.jsonl or all.jsonl", str(folder), "rename the file that is to be trained on"
        )
    if not val.is_file():
        notes = [*notes, "There is no validation split: name one in data.val, or nothing is measured."]
    if test.is_file():
        command = shlex.join(["qwendet", "infer", str(directory / "run" / "final"), str(test)])
        notes = [*notes, f"The test split is not used; after training: {command}"]
    val_name = _from_config(val, directory) if val.is_file() else None
    return _Data(_from_config(train, directory), val_name, train, notes)


def _model_path(model: str, directory: Path) -> str:
    """``model.path``: a folder as the config names it, or a name."""
    return _from_config(Path(model), directory) if model != TINY and Path(model).is_dir() else model


def _from_config(target: Path, directory: Path) -> str:
    """A path as the config names it: relative to it if it lies beneath, else absolute."""
    path, home = target.resolve(), directory.resolve()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


def median_pixels(train_file: Path) -> float:
    """Median number of pixels of the first training images; what cannot be opened does not count."""
    areas = []
    samples = SampleFile(train_file)
    for index in islice(range(len(samples)), LOOKED_AT):
        try:
            sample = samples[index]
            width, height = image_size(sample.student.image, sample.student.root, sample.where)
        except DataError:  # validate-config names it
            continue
        areas.append(width * height)
    return median(areas) if areas else 0.0


# Config


def _settings(path: str, data: _Data, *, generated: bool) -> Settings:
    """What the new config says."""
    files = {"train": data.train, "val": data.val}
    if path != TINY:
        return {
            "model": {"path": path, **FULL["model"]},
            "data": {**files, **FULL["data"]},
            "train": FULL["train"],
        }
    limits: dict[str, int | None]
    if generated:
        limits = {"max_tokens": 2048, "num_workers": 0}
    else:
        is_large = data.train_file is not None and median_pixels(data.train_file) > TINY_MAX_PIXELS
        limits = {"max_pixels": TINY_MAX_PIXELS if is_large else None, "max_tokens": 4096, "num_workers": 0}
    train = {**TINY_TRAIN, "batch_size": 16 if generated else 8}
    return {"model": {"path": path}, "data": {**files, **limits}, "train": train}


def render(settings: Settings) -> str:
    """Write settings as YAML; the comment on each line is the field's own description.

    Example:
        >>> print(render({"model": {"path": "tiny"}}).splitlines()[1])
        model:
    """
    lines = []
    for section, values in settings.items():
        fields = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        pairs = [f"  {key}: {_as_yaml(value)}" for key, value in values.items()]
        width = max(map(len, pairs))
        lines += [f"{section}:"]
        lines += [
            f"{pair:<{width}}  # {(fields[key].description or '').replace('`', '')}"
            for pair, key in zip(pairs, values, strict=True)
        ]
    return HEADER + "\n".join(lines) + "\n"


def _as_yaml(value: Any) -> str:
    """A value that YAML reads back as it is.

    Example:
        >>> _as_yaml("a: b"), _as_yaml(1e-5), _as_yaml(None)
        ("'a: b'", '1.0e-05', 'null')
    """
    dumped: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=2**31)
    return dumped.strip()[1:-1]
