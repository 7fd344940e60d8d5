"""``qwendet validate-config``."""

from __future__ import annotations

import typer

from qwendet import console
from qwendet.cli.options import ConfigArgument, ConfigOption, FormatOption, SetOption, config_name


def validate_config(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    output_format: FormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Check config and data without a model: seconds instead of GPU hours."""
    console.set_format(output_format)
    from qwendet.checks.config import run_config_checks
    from qwendet.config_file import load_config

    results = run_config_checks(
        load_config(config_name(config, named), settings or ()), tracker=console.progress
    )
    console.report_checks(results)
    raise typer.Exit(int(any(result.status == "fail" for result in results)))
