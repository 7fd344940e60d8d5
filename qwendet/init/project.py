"""A new project: data where it is generated, converted or found, and a config that is computed from it.

init_project ─► data: generated shapes | JSONL where it lies | COCO, VOC, YOLO converted into DIR/data
             ─► facts ─► values ─► DIR/config.yaml, written last
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from qwendet.checks.config.samples import Split
from qwendet.checks.config.small_objects import SMALL_OBJECTS, small_objects
from qwendet.config.schema import EMBEDDED_MODELS, HUB_ID, Config, ModelConfig
from qwendet.data.formats.convert import Conversion, conversion_notes, convert_dataset
from qwendet.data.formats.detect import detect_format
from qwendet.data.formats.jsonl import sample_files
from qwendet.data.formats.records import SAMPLES, WHOLE
from qwendet.data.split import split_dataset
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.image_tokens import (
    image_limits,
    known_family,
    require_image_limits,
    settings_folder,
)
from qwendet.encoding.text_tokens import token_counter
from qwendet.errors import CheckpointError, ConfigError, DataError
from qwendet.families.choose import DEFAULT_MODEL, FAMILIES
from qwendet.families.family import Family, PixelLimits
from qwendet.families.licence import licence_of
from qwendet.files import atomic_file, atomic_folder, require_place
from qwendet.init.facts import DataFacts, count_sample_tokens, look_at, prompt_tokens
from qwendet.init.render import render
from qwendet.init.values import (
    FULL_RECIPE,
    TINY_RECIPE,
    Recipe,
    Setting,
    Settings,
    choose_course,
    choose_labels,
    choose_labels_per_request,
    choose_max_tokens,
    choose_pixels,
    choose_queries,
    counted,
)

TINY = "tiny"
GENERATED = {"train": 768, "val": 64}
"""Generated images of each split."""
GENERATED_BATCH = 16
"""Generated images are small, and learned in larger batches."""
SEEDS = {"train": 1, "val": 2}


@dataclass(frozen=True)
class InitSummary:
    """What was written, what a user should know of it, and how much was left out as broken."""

    config: Path
    next_command: str
    notes: tuple[str, ...] = ()
    left_out: int = 0


@dataclass(frozen=True)
class _Model:
    """The model of the new config."""

    path: str
    family: Family
    folder: Path | None
    limits: PixelLimits
    recipe: Recipe

    @property
    def is_embedded(self) -> bool:
        """It comes with the package."""
        return self.path in EMBEDDED_MODELS


@dataclass(frozen=True)
class _Data:
    """Sample files of the new config.

    Attributes:
        train: training samples, relative to the config or absolute.
        root: folder that image paths start from, if not the files' own.
        left_out: broken images and annotations that were skipped.
    """

    train: str
    val: str | None
    files: Mapping[Split, Path | Sequence[Path]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    root: Path | None = None
    left_out: int = 0


def init_project(
    directory: Path,
    *,
    tiny: bool,
    model: str | None,
    data: Path | None,
    how: Conversion | None = None,
    val: float | None = None,
) -> InitSummary:
    """Write ``directory/config.yaml`` and the data that it needs.

    Args:
        directory: made if it is absent.
        tiny: the embedded model on generated shapes.
        model: ``model.path``; ``None`` is ``tiny`` with ``tiny``, else ``DEFAULT_MODEL``.
        data: JSONL, or a data set that is converted into ``directory/data``; ``None`` leaves it to the user.
        how: how ``data`` is read.
        val: share of the training images for validation; JSONL, too, is then copied into ``directory/data``.
    """
    config = directory / "config.yaml"
    if config.exists():
        raise ConfigError("there is a config already", str(config), "remove it, or give another folder")
    require_place(config, "DIR")
    _require_model(model)
    if tiny and data is not None:
        command = shlex.join(["qwendet", "init", str(directory), "--model", TINY, "--data", str(data)])
        raise ConfigError(
            "--tiny generates data, --data brings it",
            "command line",
            f"for the small model on your data: {command}",
        )
    if data is None and (how is not None or val is not None):
        what = "--from, --image-dir, --skip-bad, --frame and --val are about --data, which is not given"
        raise ConfigError(what, "command line", "add --data DATA")
    chosen = _model(model or (TINY if tiny else DEFAULT_MODEL), directory)
    found = _generate(directory) if tiny else _find_data(directory, data, how or Conversion(), val)
    if tiny:
        chosen = replace(chosen, recipe=replace(chosen.recipe, batch_size=GENERATED_BATCH))
    sections, notes = _sections(chosen, found, directory)
    if data is not None and found.val is None:
        notes.insert(0, _no_validation(directory, model, data, how or Conversion()))
    with atomic_file(config) as staging:
        staging.write_text(render(sections), encoding="utf-8")
    command = "train" if tiny else "validate-config"
    further = shlex.join(["qwendet", command, str(config)])
    return InitSummary(config, further, (*found.notes, *notes), found.left_out)


# Data


def _generate(directory: Path) -> _Data:
    """Draw the generated data set into ``directory/data``."""
    folder = directory / "data"
    if folder.exists():
        raise ConfigError("expected no folder of this name yet", str(folder), "remove it, or init elsewhere")
    with atomic_folder(folder) as staging:
        for split, count in GENERATED.items():
            write_dataset(DEMO, staging / f"{split}.jsonl", count, SEEDS[split])
    files: Mapping[Split, Path] = {"train": folder / "train.jsonl", "val": folder / "val.jsonl"}
    return _Data("data/train.jsonl", "data/val.jsonl", files)


def _find_data(directory: Path, data: Path | None, how: Conversion, val: float | None) -> _Data:
    if data is None:
        note = (
            "Put your samples into data/train.jsonl and data/val.jsonl, or correct the paths in the config."
        )
        return _Data("data/train.jsonl", "data/val.jsonl", notes=(note,))
    are_samples = (detect_format(data) if how.source == "auto" else how.source) in SAMPLES
    if val is not None:
        report = split_dataset(data, directory / "data", {"val": val}, 0, how, keep_held_out=True)
    elif not are_samples:
        report = convert_dataset(data, directory / "data", how)
    elif data.is_dir():
        return _of_splits(data, directory, [], how.image_dir)
    else:
        return _Data(_from_config(data, directory), None, {"train": data}, root=how.image_dir)
    found = _of_splits(directory / "data", directory, conversion_notes(report))
    return replace(found, left_out=len(report.left_out))


def _of_splits(folder: Path, directory: Path, notes: list[str], root: Path | None = None) -> _Data:
    """Training and validation files of a folder as ``data convert`` writes it."""
    found = sample_files(folder)
    train = found.get("train") or found.get(WHOLE)
    if train is None:
        raise DataError(
            "expected train.jsonl or all.jsonl", str(folder), "rename the file that is to be trained on"
        )
    files: dict[Split, Path | Sequence[Path]] = {"train": train}
    if "val" in found:
        files["val"] = found["val"]
    # Of a folder of shards training and validation each take their own.
    named = {
        split: own if isinstance(own, Path) else folder for split, own in [*files.items(), *found.items()]
    }
    if "test" in found:
        command = shlex.join(["qwendet", "eval", str(directory / "run" / "final"), str(named["test"])])
        notes = [*notes, f"The test split is not used; after training: {command}"]
    val_name = _from_config(named["val"], directory) if "val" in named else None
    return _Data(_from_config(named["train"], directory), val_name, files, tuple(notes), root)


def _no_validation(directory: Path, model: str | None, data: Path, how: Conversion) -> str:
    """What to do where no validation split was found: the same command, with ``--val``, in another folder."""
    home = directory.absolute()
    words = ["qwendet", "init", os.path.relpath(home.with_name(f"{home.name}-val")), "--data", str(data)]
    words += [] if model is None else ["--model", model]
    words += [*how.options(), "--val", "0.1"]
    return (
        "There is no validation split, so nothing is measured after training: name a file in data.val,"
        f" or have some images set aside, in another folder: {shlex.join(words)}"
    )


def _require_model(model: str | None) -> None:
    """Refuse what is neither a folder nor can be a name."""
    if model is None or model in EMBEDDED_MODELS or Path(model).is_dir() or HUB_ID.fullmatch(model):
        return
    raise ConfigError(f"there is no folder {model}", "--model", "give tiny, a folder, or a hub id")


def _model(model: str, directory: Path) -> _Model:
    """The model that a user names; nothing is downloaded."""
    settings = ModelConfig(path=model)
    folder = settings_folder(settings)
    family = known_family(settings)
    if family is None:
        names = ", ".join(family.name for family in FAMILIES.values())
        raise ConfigError(
            f"the family of {model} is not known: its config.json is not on this disk, and its name is none"
            f" of {names}, or that of a mixture of experts, which is not supported",
            "--model",
            f"fetch its settings first: hf download {model} --include '*.json' '*.jinja' '*.txt'",
        )
    is_embedded = model in EMBEDDED_MODELS
    limits = image_limits(Config(model=settings)) or require_image_limits(Config(), folder or Path(model))
    path = model
    if folder == Path(model) and not is_embedded:
        path = _from_config(folder, directory)
        if not (folder / "tokenizer.json").is_file():
            fix = "copy the tokenizer's files from the model's origin"
            raise CheckpointError("there is no tokenizer.json beside config.json", str(folder), fix)
    return _Model(path, family, folder, limits, TINY_RECIPE if is_embedded else FULL_RECIPE)


def _from_config(target: Path, directory: Path) -> str:
    """A path as the config names it: relative to it if it lies beneath, else absolute."""
    # No link is followed: in the Hugging Face cache it leads to a file of no name, away from the images.
    path, home = (Path(os.path.normpath(place.absolute())) for place in (target, directory))
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


# Config


def _sections(model: _Model, data: _Data, directory: Path) -> tuple[dict[str, Settings], list[str]]:
    """What the new config says, and what a user should know of it."""
    facts = look_at(data.files, data.root) if data.files else None
    settings: dict[str, Setting] = {"train": Setting(data.train), "val": Setting(data.val)}
    if data.root is not None:
        settings["root"] = Setting(_from_config(data.root, directory))
    licence = "" if model.is_embedded else licence_of(model.path, model.folder, model.family)
    notes = [f"{model.path} is published under this licence: {licence}."] if licence else []
    if facts is None:
        settings["max_pixels"] = Setting(model.recipe.most_tokens * model.limits.unit**2)
    else:
        of_facts, further = _of_facts(facts, model)
        settings |= of_facts
        notes += further
    settings["num_workers"] = Setting(0 if model.is_embedded else 2)
    of_model = {"path": Setting(model.path, f"licence: {licence}" if licence else "")}
    if not model.is_embedded:
        of_model |= {
            "dtype": Setting("auto"),
            "attn_implementation": Setting("auto"),
            "gradient_checkpointing": Setting(True),
        }
    sections: dict[str, Settings] = {"model": of_model, "data": settings}
    queries = None if facts is None else choose_queries(facts.most_boxes)
    if queries is not None:
        sections["detection"] = {"num_queries": queries}
        sections["infer"] = {"max_detections": queries}
    course = choose_course(0 if facts is None else facts.num_samples, model.recipe)
    sections["train"] = {"output_dir": Setting("run"), **course}
    return sections, notes


def _of_facts(facts: DataFacts, model: _Model) -> tuple[dict[str, Setting], list[str]]:
    """Labels and limits by what the samples hold."""
    limits = model.limits
    settings = {"labels": choose_labels(facts.labels, facts.num_samples, are_asked=facts.are_asked)}
    count, is_exact = token_counter(model.folder)
    notes, tokens = [], {label: count(f", {label}") for label in facts.labels}
    most = choose_labels_per_request(tokens)
    asked = sorted(tokens, key=lambda label: -tokens[label])[:most]
    if most is not None:
        why = f"{len(tokens):,} labels would take {sum(tokens.values()):,} tokens of each request"
        settings["labels_per_request"] = Setting(most, why)
        notes.append(f"{why}: data.labels_per_request is {most}; see docs/data.md, many labels.")
    settings |= choose_pixels(facts.boxes, set(facts.size_of.values()), limits, model.recipe)
    low = settings["min_pixels"].value if "min_pixels" in settings else limits.min_pixels
    seen = PixelLimits(low, settings["max_pixels"].value, limits.unit)
    for small in islice(small_objects(facts.splits, seen), 1):
        settings["allow"] = Setting([SMALL_OBJECTS], "objects smaller than an image token are accepted")
        notes.append(
            f"Objects are small for this model: {small.what}. The config accepts it (data.allow), since"
            f" larger images cost more; to fix it, {small.fix}."
        )
    totals = count_sample_tokens(facts, asked, seen, model.family, count)
    around = prompt_tokens(asked, model.family, count)[0]
    of_largest = seen.max_pixels // seen.unit**2 + around
    max_tokens = choose_max_tokens(totals, of_largest, is_exact=is_exact)
    if max_tokens is None:
        return settings, notes
    settings["max_tokens"] = max_tokens
    too_long = [total for total in totals if total > max_tokens.value]
    if too_long:
        notes.append(
            f"{counted(len(too_long), 'sample')} of {len(totals):,} would have more than data.max_tokens ="
            f" {max_tokens.value:,} tokens (up to {max(too_long):,}), which training refuses:"
            " qwendet validate-config --tokens names them; shorten them, or raise data.max_tokens."
        )
    return settings, notes
