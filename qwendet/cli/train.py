"""``qwendet train``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qwendet import console
from qwendet.cli.options import ConfigArgument, ConfigOption, SetOption, command_line, config_name

if TYPE_CHECKING:
    from qwendet.run import RunSummary

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def train(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.")
    ] = False,
    settings: SetOption = None,
) -> None:
    """Train a detector; config and data are checked before it starts."""
    from qwendet.config_file import load_config

    name = config_name(config, named)
    loaded = load_config(name, settings or ())
    from qwendet.run import train as run_training  # imports torch: seconds that a broken config need not wait

    summary = run_training(loaded, resume=resume, tracker=console.progress)
    _report(summary, command_line("train", name, "--resume", settings=settings or ()))


def _report(summary: RunSummary, resume_command: str) -> None:
    if summary.metrics:
        console.print_table("Validation", ("metric", "value"), list(summary.metrics.items()))
    if summary.stopped_by:
        console.say(f"Stopped by {summary.stopped_by}; a checkpoint was saved in {summary.output_dir}.")
        console.next_step(resume_command)
        raise typer.Exit(EXIT_CODES[summary.stopped_by])
    if summary.final is not None:
        console.say(f"The model is in {summary.final}.")
        console.next_step(command_line("infer", str(summary.final), "IMAGE"))
