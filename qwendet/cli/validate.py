"""``qwendet validate-config``."""

from __future__ import annotations

from typing import Annotated

import typer

from qwendet import console
from qwendet.cli.options import (
    ConfigArgument,
    ConfigOption,
    DecodeOption,
    FormatOption,
    NoImagesOption,
    SetOption,
    WorkersOption,
    config_name,
    image_depth,
)


def validate_config(
    config: ConfigArgument = None,
    named: ConfigOption = None,
    output_format: FormatOption = "human",
    settings: SetOption = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Count the tokens of every sample; loads the tokenizer.")
    ] = False,
    decode: DecodeOption = False,
    no_images: NoImagesOption = False,
    workers: WorkersOption = None,
) -> None:
    """Check config and data without a model: seconds instead of GPU hours."""
    console.set_format(output_format)
    from qwendet.checks.config.scan import available_cores
    from qwendet.checks.config.suite import Thoroughness, exit_code, run_config_checks
    from qwendet.config_file import load_config

    how = Thoroughness(image_depth(decode, no_images), tokens, workers or available_cores())
    loaded = load_config(config_name(config, named), settings or ())
    results, tables = run_config_checks(loaded, console.progress, how)
    if output_format == "human":
        for table in tables:
            console.print_table(table.title, table.columns, table.rows)
    console.report_checks(results)
    raise typer.Exit(exit_code(results))
