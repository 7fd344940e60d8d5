"""``qwendet data check`` and ``qwendet data stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwendet import console
from qwendet.cli.options import (
    DecodeOption,
    FormatOption,
    NoImagesOption,
    WorkersOption,
    command_line,
    image_depth,
)

RootOption = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Folder that image paths start from, if not in the data set."),
]
PathsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Data sets: JSONL, COCO, VOC or YOLO, as files or folders."),
]


def check(
    paths: PathsArgument,
    root: RootOption = None,
    output_format: FormatOption = "human",
    decode: DecodeOption = False,
    no_images: NoImagesOption = False,
    workers: WorkersOption = None,
) -> None:
    """Check a data set without a config: what validate-config says of samples, images and labels."""
    console.set_format(output_format)
    from qwendet.checks.config.sample_files import find_data
    from qwendet.checks.config.scan import available_cores
    from qwendet.checks.config.suite import Thoroughness, exit_code, run_data_checks

    how = Thoroughness(image_depth(decode, no_images), workers=workers or available_cores())
    results, tables = run_data_checks(find_data(paths), root, console.progress, how)
    if output_format == "human":
        for table in tables:
            console.print_table(table.title, table.columns, table.rows)
    console.report_checks(results)
    raise typer.Exit(exit_code(results))


def stats(
    paths: PathsArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Also draw pictures (PNG) into this folder."),
    ] = None,
    root: RootOption = None,
    no_images: NoImagesOption = False,
    workers: WorkersOption = None,
) -> None:
    """Show a data set in figures: boxes of each label, their sizes, shapes and places."""
    from qwendet.checks.config.plots import save_plots
    from qwendet.checks.config.sample_files import find_data
    from qwendet.checks.config.scan import available_cores
    from qwendet.checks.config.suite import Thoroughness, survey_data
    from qwendet.checks.config.summary import summary_tables

    how = Thoroughness(image_depth(False, no_images), workers=workers or available_cores())
    seen, num_left_out = survey_data(find_data(paths), root, console.progress, how)
    for table in summary_tables(seen.scans):
        console.print_table(table.title, table.columns, table.rows)
    if num_left_out:
        hint = command_line("data", "check", *map(str, paths))
        console.say(f"{num_left_out} samples or boxes are broken and not counted; see {hint}")
    if output is not None:
        files = save_plots(seen.scans, output)
        console.say(f"Drew {', '.join(str(file) for file in files)}.")
