"""``qwendet data …``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qwendet import console

if TYPE_CHECKING:
    from qwendet.data.jsonl_writer import ConversionReport

app = typer.Typer(no_args_is_help=True, help="Convert data sets.")


@app.callback()
def _data() -> None:
    """Keep ``convert`` a command of its own: Typer merges a group with only one."""


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the data set; stays as it is.")],
    dst: Annotated[
        Path, typer.Argument(metavar="DST", help="Folder to write train.jsonl, val.jsonl, test.jsonl into.")
    ],
    source: Annotated[
        Literal["voc", "auto"], typer.Option("--from", help="Format of SRC; auto looks into it.")
    ] = "auto",
    target: Annotated[Literal["jsonl"], typer.Option("--to", help="Format to write.")] = "jsonl",
    images: Annotated[
        Literal["copy", "link", "reference"],
        typer.Option("--images", help="Copy, hard-link, or leave where they are and set data.root."),
    ] = "copy",
) -> None:
    """Convert a data set into JSONL, one file a split."""
    from qwendet.data.convert import conversion_notes, convert_dataset

    report = convert_dataset(src, dst, source=source, images=images, tracker=console.progress)
    console.print_table("Boxes", ("split", "images", "label", "boxes"), _rows(report))
    for note in conversion_notes(report):
        console.say(note)
    console.say(f"Wrote {', '.join(str(file) for file in report.files)}.")


def _rows(report: ConversionReport) -> list[tuple[str, int, str, int]]:
    return [
        (split, count, label, boxes)
        for split, count in report.images.items()
        for label, boxes in sorted(report.boxes.get(split, {}).items()) or [("", 0)]
    ]
