"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from qwendet.errors import ConfigError

CONFIG_FIX = "give it once: qwendet COMMAND CONFIG, or qwendet COMMAND --config NAME"

OutputFormat = Literal["human", "json"]

ConfigArgument = Annotated[
    str | None,
    typer.Argument(metavar="CONFIG", help="YAML file, or a name such as base_flat_v2 in examples/."),
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="NAME", help="The same as CONFIG; give one of them.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, such as train.max_steps=100. Repeatable."
    ),
]
FormatOption = Annotated[OutputFormat, typer.Option("--format", help="How results are printed.")]


def config_name(argument: str | None, option: str | None) -> str:
    """The config that was given as CONFIG or as ``--config``.

    Raises:
        ConfigError: if neither or both were given.
    """
    if argument and option:
        raise ConfigError(f"two configs were given: {argument} and {option}", "--config", CONFIG_FIX)
    name = argument or option
    if not name:
        raise ConfigError("no config was given", "command line", CONFIG_FIX)
    return name


def split_labels(text: str | None) -> tuple[str, ...] | None:
    """Read ``--labels``.

    Raises:
        ConfigError: if a label is empty or given twice.

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


def command_line(*words: str, settings: Sequence[str] = ()) -> str:
    """A command to copy, quoted for the shell.

    Example:
        >>> command_line("train", "my run/config.yaml", settings=["train.seed=1"])
        "qwendet train 'my run/config.yaml' --set train.seed=1"
    """
    options = [word for setting in settings for word in ("--set", setting)]
    return shlex.join(["qwendet", *words, *options])
