"""``qwendet data check`` and ``qwendet data stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qwendet.cli.options import (
    DecodeOption,
    FormatOption,
    FrameOption,
    FromOption,
    ImageDirOption,
    NoImagesOption,
    RecordFormatOption,
    WorkersOption,
    command_line,
    image_depth,
)
from qwendet.cli.validate import report_and_exit
from qwendet.console import console
from qwendet.errors import ConfigError
from qwendet.files import require_place

PathsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...", help="Data sets: JSONL, COCO, VOC, YOLO or conversations, files or folders."
    ),
]


def check(
    paths: PathsArgument,
    source: FromOption = "auto",
    image_dir: ImageDirOption = None,
    frame: FrameOption = None,
    output_format: FormatOption = "human",
    decode: DecodeOption = False,
    no_images: NoImagesOption = False,
    workers: WorkersOption = None,
) -> None:
    """Check a data set without a config: what validate-config says of samples, images and labels."""
    from qwendet.checks.config.sample_files import find_data
    from qwendet.checks.config.scan import Thoroughness, available_cores
    from qwendet.checks.config.suite import run_data_checks
    from qwendet.data.formats.convert import Conversion

    how = Thoroughness(image_depth(decode, no_images), workers=workers or available_cores())
    results, tables = run_data_checks(find_data(paths, source, frame), image_dir, how)
    reading = Conversion(source, image_dir=image_dir, frame=frame).options()
    report_and_exit(results, tables, command_line("init", "DIR", "--data", str(paths[0]), *reading))


def stats(
    paths: PathsArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Also draw pictures (PNG) into this folder."),
    ] = None,
    augment: Annotated[
        Literal["off", "light", "strong", "aerial"],
        typer.Option("--augment", help="With --output, also draw what this preset of data.augment makes."),
    ] = "off",
    source: FromOption = "auto",
    image_dir: ImageDirOption = None,
    frame: FrameOption = None,
    output_format: RecordFormatOption = "human",
    no_images: NoImagesOption = False,
    workers: WorkersOption = None,
) -> None:
    """Show a data set in figures: boxes of each label, their sizes, shapes and places."""
    if output is not None:
        require_place(output, "--output", is_folder=True)
    elif augment != "off":
        raise ConfigError("--augment draws, and has no folder to draw into", "--augment", "add --output DIR")
    from qwendet.checks.config.plots import save_plots
    from qwendet.checks.config.sample_files import find_data
    from qwendet.checks.config.scan import Thoroughness, available_cores
    from qwendet.checks.config.suite import read_data
    from qwendet.checks.config.summary import summary_tables
    from qwendet.data.formats.convert import Conversion

    how = Thoroughness(image_depth(False, no_images), workers=workers or available_cores())
    seen, num_left_out = read_data(find_data(paths, source, frame), image_dir, how)
    reading = Conversion(source, image_dir=image_dir, frame=frame)
    tables = summary_tables(seen.splits)
    files = []
    if output is not None and augment != "off":
        from qwendet.evaluation.dataset import open_dataset
        from qwendet.visualization.augmented import save_augmented

        samples, *_ = open_dataset(paths[0], reading)
        files.append(save_augmented(samples, augment, output))
    if output is not None:
        files += save_plots(seen.splits, output)
    further = command_line("data", "check", *map(str, paths), *reading.options())
    if console.is_for_machine():
        shown = [
            {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
            for table in tables
        ]
        pictures = list(map(str, files))
        console.print_record({"tables": shown, "broken": num_left_out, "pictures": pictures, "next": further})
        return
    for table in tables:
        console.print_table(table.title, table.columns, table.rows)
    if num_left_out:
        console.say(f"{num_left_out} samples or boxes are broken and not counted.")
    if files:
        console.say(f"Drew {', '.join(str(file) for file in files)}.")
    console.next_step(further)
