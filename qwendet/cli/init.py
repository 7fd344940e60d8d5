"""``qwendet init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwendet.cli.options import (
    LEFT_SOMETHING_OUT,
    FrameOption,
    FromOption,
    ImageDirOption,
    RecordFormatOption,
    SkipBadOption,
)
from qwendet.console import console
from qwendet.families.choose import DEFAULT_MODEL


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the project.")] = Path(),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The embedded small model and generated data: no download, no GPU.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help=f"tiny, a folder, or a hub id; without it {Path(DEFAULT_MODEL).name}."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="COCO, VOC, YOLO, JSONL or conversations: a file, or the folder that holds it."
        ),
    ] = None,
    source: FromOption = "auto",
    image_dir: ImageDirOption = None,
    skip_bad: SkipBadOption = False,
    frame: FrameOption = None,
    val: Annotated[
        float | None,
        typer.Option("--val", help="Share of the training images for validation, if there are none for it."),
    ] = None,
    output_format: RecordFormatOption = "human",
) -> None:
    """Write a config whose values are computed from the data, and say on each line from what."""
    from qwendet.data.formats.convert import Conversion
    from qwendet.init.project import init_project

    how = Conversion(source, image_dir=image_dir, skip_bad=skip_bad, frame=frame)
    summary = init_project(
        directory, tiny=tiny, model=model, data=data, how=None if how == Conversion() else how, val=val
    )
    if console.is_for_machine():
        record = {"config": str(summary.config), "notes": summary.notes, "next": summary.next_command}
        console.print_record(record, ok=not summary.left_out)
    else:
        for note in summary.notes:
            console.say(note)
        console.say(f"Wrote {summary.config}.")
        console.next_step(summary.next_command)
    if summary.left_out:
        raise typer.Exit(LEFT_SOMETHING_OUT)
