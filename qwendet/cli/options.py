"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwendet.console import console
from qwendet.console.console import Format
from qwendet.errors import ConfigError
from qwendet.inference.sharding import is_first_process

LEFT_SOMETHING_OUT = 1
"""Exit code of a command that skipped broken annotations, as ``--skip-bad`` asks."""
CONFIG_FIX = "give it once: qwendet COMMAND CONFIG, or qwendet COMMAND --config NAME"


def complete_setting(incomplete: str) -> list[str]:
    """Dotted keys of the config that begin so, up to the equals sign."""
    from qwendet.config.problems import known_keys

    keys = known_keys()
    leaves = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    return [f"{key}=" for key in leaves if key.startswith(incomplete)]


def complete_check(incomplete: str) -> list[str]:
    """Ids of checks that begin so."""
    from qwendet.checks.ids import all_ids

    return [id for id in all_ids() if id.startswith(incomplete)]


ConfigArgument = Annotated[
    str | None,
    typer.Argument(metavar="CONFIG", help="YAML file, or a name such as base_flat_v2 in examples/."),
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", metavar="NAME", help="The same as CONFIG; give one of them."),
]
ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Folder that train wrote, such as run/final; any model's, or its hub id."
    ),
]
ForeignOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="How a model was trained that train did not write: prompt, limits, frame.",
    ),
]
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Folder that train wrote, such as run/final.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, such as train.max_steps=100. Repeatable.",
        autocompletion=complete_setting,
    ),
]
DecodeOption = Annotated[
    bool, typer.Option("--decode", help="Decode every image instead of its header and end mark alone.")
]
NoImagesOption = Annotated[bool, typer.Option("--no-images", help="Open no image: annotations alone.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that read samples; all cores if not given.")
]
ModeOption = Annotated[
    Literal["head", "text", "both"] | None,
    typer.Option("--mode", help="Who answers; without it, the head where there is one, else text."),
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Ask the server that serves MODEL, in text."),
]
TilesOption = Annotated[
    str | None,
    typer.Option(
        "--tiles", metavar="auto|CxR|PIXELS", help="Look at windows of large images, too (infer.tiles)."
    ),
]
OverlapOption = Annotated[
    float | None,
    typer.Option(
        "--overlap", metavar="SHARE", min=0, max=0.9, help="Least overlap of windows (infer.overlap)."
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="ID", help="Run this check alone. Repeatable.", autocompletion=complete_check
    ),
]
ListOption = Annotated[bool, typer.Option("--list", help="Print the ids of all checks and exit.")]
OverfitOption = Annotated[
    bool, typer.Option("--overfit/--no-overfit", help="Train 12 steps on one batch, and put all back.")
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="DIR", help="Compare a saved run with what CONFIG would build."),
]
Formats = Literal[
    "coco", "voc", "yolo", "jsonl", "conversations", "cvat", "labelstudio", "labelme", "via", "createml",
    "datumaro", "supervisely", "openimages", "huggingface", "refcoco", "auto",
]  # fmt: skip
FromOption = Annotated[
    Formats,
    typer.Option(
        "--from",
        metavar="FORMAT",
        help="Format of what is read: coco, voc, yolo, jsonl, conversations, cvat, labelstudio, labelme, "
        "via, createml, datumaro, supervisely, openimages, huggingface or refcoco; auto looks into it.",
    ),
]
FrameOption = Annotated[
    Literal["pixels", "resized", "thousandths", "fractions"] | None,
    typer.Option("--frame", help="What the boxes of conversations are, where they do not say it."),
]
ImageDirOption = Annotated[
    Path | None,
    typer.Option(
        "--image-dir", "--root", metavar="DIR", help="Where the images are, if not in the data set."
    ),
]
SkipImagesOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be used, list them, end with 1.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from what a run with the same output has predicted.")
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images with broken annotations, list them, end with 1.")
]


_FORMAT = typer.Option("--format", help="How results and errors are printed.")
RecordFormatOption = Annotated[Literal["human", "json"], _FORMAT]
FormatOption = Annotated[Format, _FORMAT]


def config_name(argument: str | None, option: str | None) -> str:
    """The config that was given as CONFIG or as ``--config``."""
    if argument and option:
        raise ConfigError(f"two configs were given: {argument} and {option}", "--config", CONFIG_FIX)
    name = argument or option
    if not name:
        raise ConfigError("no config was given", "command line", CONFIG_FIX)
    return name


def next_of(model: Path, origin: Mapping[str, object]) -> str:
    """What comes after a model was looked at: a checkpoint is exported, another model is trained."""
    if origin["trained_by"] == "unknown":
        return command_line("init", "DIR", "--data", "DATA", "--model", str(model))
    return command_line("export", str(model), "OUT")


def image_depth(decode: bool, no_images: bool) -> Literal["none", "header", "full"]:
    """How far images are read, by ``--decode`` and ``--no-images``."""
    if decode and no_images:
        raise ConfigError("--decode and --no-images exclude each other", "command line", "give one of them")
    return "full" if decode else "none" if no_images else "header"


def split_labels(text: str | None) -> tuple[str, ...] | None:
    """Read ``--labels``.

    Example:
        >>> split_labels("red cell, platelet")
        ('red cell', 'platelet')
    """
    if text is None:
        return None
    labels = tuple(label.strip() for label in text.split(","))
    if not all(labels) or len(set(labels)) < len(labels):
        raise ConfigError(
            f"expected different labels separated by commas, got {text!r}",
            "--labels",
            "for example: --labels 'cat,traffic light'",
        )
    return labels


def split_shard(text: str | None) -> tuple[int, int] | None:
    """Read ``--shard``.

    Example:
        >>> split_shard("0/4")
        (0, 4)
    """
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        what = f"expected I/N with I from 0 to N - 1, got {text!r}"
        raise ConfigError(what, "--shard", "the parts of 4 are 0/4, 1/4, 2/4 and 3/4")
    return int(number), int(count)


def with_tiles(settings: Sequence[str] | None, tiles: str | None, overlap: float | None) -> list[str]:
    """``--set`` of a command, and what ``--tiles`` and ``--overlap`` set.

    Raises:
        ConfigError: for what is no windows, and for an overlap of none.
    """
    if tiles not in (None, "auto", "off"):
        from qwendet.data.tile import read_tiles

        read_tiles(tiles)
    if overlap is not None and tiles in (None, "off"):
        what = "--overlap is about windows, and --tiles asks for none"
        raise ConfigError(what, "--overlap", "add --tiles, such as --tiles auto")
    given = {"tiles": tiles, "overlap": overlap}
    return [*(settings or ()), *(f"infer.{key}={value}" for key, value in given.items() if value is not None)]


def command_line(*words: str, settings: Sequence[str] = ()) -> str:
    """A command to copy, quoted for the shell.

    Example:
        >>> command_line("train", "my run/config.yaml", settings=["train.seed=1"])
        "qwendet train 'my run/config.yaml' --set train.seed=1"
    """
    options = [word for setting in settings for word in ("--set", setting)]
    return shlex.join(["qwendet", *words, *options])


typed: list[str] = []
"""The words of the command that runs."""


def again(*more: str) -> str:
    """The command that runs, to copy, with more words behind it."""
    return command_line(*typed, *more)


@contextmanager
def kept_parts(folder: Path | None) -> Iterator[None]:
    """Say, where a run ends early, where its predictions are kept, and what goes on from there."""
    try:
        yield
    except ConfigError:  # a mistake of the command, which would not go on
        raise
    except BaseException:
        if folder is not None and folder.is_dir() and is_first_process():
            command = again() if "--resume" in typed else again("--resume")
            console.say(f"What is predicted is kept in {folder}; this goes on from there: {command}")
        raise
