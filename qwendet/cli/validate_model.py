"""``qwendet validate-loss`` and ``qwendet validate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from qwendet import console
from qwendet.cli.options import (
    CheckpointOption,
    ConfigArgument,
    ConfigOption,
    FormatOption,
    ListOption,
    OnlyOption,
    OverfitOption,
    SetOption,
    WorkersOption,
    config_name,
)

if TYPE_CHECKING:
    from qwendet.checks.result import Result, Table


def validate_loss(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    overfit: OverfitOption = True,
    only: OnlyOption = None,
    list_ids: ListOption = False,
    output_format: FormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Prove that what is back-propagated is what is meant, on the config's own model and data."""
    console.set_format(output_format)
    from qwendet.checks.config.suite import exit_code
    from qwendet.checks.loss.suite import CHECKS, run_loss_checks
    from qwendet.checks.runner import require_known
    from qwendet.checks.subject import temporary_subject
    from qwendet.config_file import load_config

    if list_ids:
        console.print_lines(CHECKS)
        return
    require_known(only or (), list(CHECKS))
    loaded = load_config(config_name(config, named), settings or ())
    with console.nothing_but_results(), temporary_subject(loaded) as subject:
        results, tables = run_loss_checks(subject, console.progress, only=only or (), with_overfit=overfit)
    report(results, tables, output_format)
    raise typer.Exit(exit_code(results))


def validate(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    checkpoint: CheckpointOption = None,
    overfit: OverfitOption = True,
    only: OnlyOption = None,
    list_ids: ListOption = False,
    output_format: FormatOption = "human",
    settings: SetOption = None,
    workers: WorkersOption = None,
) -> None:
    """Run every check of config, loss and consistency: the step before training, and in CI."""
    console.set_format(output_format)
    from qwendet.checks.config.scan import available_cores
    from qwendet.checks.config.suite import Thoroughness, exit_code
    from qwendet.checks.preflight import all_ids, run_all_checks
    from qwendet.config_file import load_config

    if list_ids:
        console.print_lines(all_ids())
        return
    loaded = load_config(config_name(config, named), settings or ())
    how = Thoroughness(tokens=True, workers=workers or available_cores())
    with console.nothing_but_results():
        results, tables = run_all_checks(
            loaded, console.progress, how, checkpoint=checkpoint, only=only or (), with_overfit=overfit
        )
    report(results, tables, output_format)
    raise typer.Exit(exit_code(results))


def report(results: Sequence[Result], tables: Sequence[Table], output_format: str) -> None:
    """Print figures, for people only, and results."""
    if output_format == "human":
        for table in tables:
            console.print_table(table.title, table.columns, table.rows)
    console.report_checks(results)
