"""``qwendet check-consistency``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwendet import console
from qwendet.cli.options import ConfigArgument, ConfigOption, FormatOption, SetOption, config_name


def check_consistency(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="Compare a saved run with what CONFIG would build."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="Run this check alone. Repeatable.")
    ] = None,
    list_ids: Annotated[bool, typer.Option("--list", help="Print the ids of all checks and exit.")] = False,
    output_format: FormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Prove that the model which is trained is the model which is served."""
    console.set_format(output_format)
    from qwendet.checks.config import exit_code
    from qwendet.checks.consistency import IDS, run_consistency_checks
    from qwendet.checks.subject import temporary_subject
    from qwendet.config_file import load_config

    if list_ids:
        console.print_lines(IDS)
        return
    loaded = load_config(config_name(config, named), settings or ())
    with temporary_subject(loaded) as subject:
        results, tables = run_consistency_checks(
            subject, console.progress, checkpoint=checkpoint, only=only or ()
        )
    if output_format == "human":
        for table in tables:
            console.print_table(table.title, table.columns, table.rows)
    console.report_checks(results)
    raise typer.Exit(exit_code(results))
