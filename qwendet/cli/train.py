"""``qwendet train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwendet.cli.options import (
    ConfigArgument,
    ConfigOption,
    RecordFormatOption,
    SetOption,
    command_line,
    config_name,
)
from qwendet.console import console
from qwendet.inference.sharding import is_first_process

if TYPE_CHECKING:
    from qwendet.config.schema import Config
    from qwendet.train import RunSummary

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def train(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.")
    ] = False,
    output_format: RecordFormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Train a detector; config and data are checked before it starts."""
    from qwendet.config.load import load_config

    name = config_name(config, named)
    loaded = load_config(name, settings or ())
    from qwendet.train import (
        train as run_training,  # imports torch: seconds that a broken config need not wait
    )

    with console.nothing_but_results():
        summary = run_training(loaded, resume=resume)
    if not is_first_process():  # of those that a launcher started
        return
    resume_command = command_line("train", name, "--resume", settings=settings or ())
    _report(summary, resume_command if summary.stopped_by else _measure_command(summary, loaded))
    if summary.stopped_by:
        raise typer.Exit(EXIT_CODES[summary.stopped_by])


def _measure_command(summary: RunSummary, config: Config) -> str:
    """What to do with a trained model: measure it where there is something to measure on, else look at it."""
    model = _from_here(summary.final if summary.best is None else summary.output_dir / "best")
    if config.data.val is None:
        return command_line("infer", model, "IMAGE", "--visualize", "pictures")
    report = _from_here(summary.output_dir / "report")
    return command_line("eval", model, _from_here(config.data.val), "--report", report)


def _from_here(path: str | Path | None) -> str:
    """A path as short as it can be typed: the config has made it absolute."""
    path, here = Path(str(path)), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _cells(name: str, after: float, before: Mapping[str, float] | None) -> list[object]:
    """What a row says after its name; -1 is COCO's word for nothing to measure, eval prints a dash, too."""
    values = [after] if before is None else [before.get(name, -1), after]
    cells: list[object] = [None if value == -1 else value for value in values]
    return cells if before is None else [*cells, None if -1 in values else after - before[name]]


def _report(summary: RunSummary, next_command: str) -> None:
    if console.is_for_machine():
        record = {
            "output_dir": str(summary.output_dir),
            "final": None if summary.final is None else str(summary.final),
            "metrics": summary.metrics,
            "before": summary.before,
            "best": None if summary.best is None else asdict(summary.best),
            "stopped_by": summary.stopped_by,
            "next": next_command,
        }
        console.print_record(record, ok=not summary.stopped_by)
        return
    if summary.metrics:
        columns = (
            ["metric", "value"] if summary.before is None else ["metric", "before", "after", "difference"]
        )
        rows = [[name, *_cells(name, value, summary.before)] for name, value in summary.metrics.items()]
        console.print_table("Validation", columns, rows)
    if summary.stopped_by:
        console.say(
            f"Stopped by {summary.stopped_by}; a checkpoint was saved in {_from_here(summary.output_dir)}."
        )
    else:
        console.say(f"The model is in {_from_here(summary.final)}.")
    if summary.best is not None:
        folder, best = _from_here(summary.output_dir / "best"), summary.best
        console.say(f"The best is in {folder}: step {best.step}, validation {best.metric} {best.value:.4f}.")
    console.next_step(next_command)
