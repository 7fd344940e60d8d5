"""``qwendet check-consistency``."""

from __future__ import annotations

import typer

from qwendet import console
from qwendet.cli.options import (
    CheckpointOption,
    ConfigArgument,
    ConfigOption,
    FormatOption,
    ListOption,
    OnlyOption,
    SetOption,
    config_name,
)
from qwendet.cli.validate_model import report


def check_consistency(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    checkpoint: CheckpointOption = None,
    only: OnlyOption = None,
    list_ids: ListOption = False,
    output_format: FormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Prove that the model which is trained is the model which is served."""
    console.set_format(output_format)
    from qwendet.checks.config.suite import exit_code
    from qwendet.checks.consistency.suite import IDS, run_consistency_checks
    from qwendet.checks.runner import require_known
    from qwendet.checks.subject import temporary_subject
    from qwendet.config_file import load_config

    if list_ids:
        console.print_lines(IDS)
        return
    require_known(only or (), IDS)
    loaded = load_config(config_name(config, named), settings or ())
    with console.nothing_but_results(), temporary_subject(loaded) as subject:
        results, tables = run_consistency_checks(
            subject, console.progress, checkpoint=checkpoint, only=only or ()
        )
    report(results, tables, output_format)
    raise typer.Exit(exit_code(results))
