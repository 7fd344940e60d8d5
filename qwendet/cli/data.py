"""``qwendet data …``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qwendet import console

if TYPE_CHECKING:
    from qwendet.data.convert import ConversionReport

LEFT_SOMETHING_OUT = 1
"""Exit code of a conversion that was told to skip broken annotations, and did."""

app = typer.Typer(no_args_is_help=True, help="Convert and prepare data sets.")

Source = Annotated[
    Path, typer.Argument(metavar="SRC", help="The data set, a folder or file; stays as it is.")
]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write into; absent or empty.")]
FromOption = Annotated[
    Literal["coco", "voc", "yolo", "jsonl", "auto"],
    typer.Option("--from", help="Format of SRC; auto looks into it."),
]
ToOption = Annotated[Literal["jsonl", "coco", "voc", "yolo"], typer.Option("--to", help="Format to write.")]
ImagesOption = Annotated[
    Literal["copy", "link", "reference"],
    typer.Option("--images", help="Copy or hard-link beside what is written, or leave where they are."),
]
ImageDirOption = Annotated[
    Path | None,
    typer.Option("--image-dir", metavar="DIR", help="Where the images of SRC are, if not in SRC."),
]


@app.command()
def convert(
    src: Source,
    dst: Target,
    source: FromOption = "auto",
    target: ToOption = "jsonl",
    images: ImagesOption = "copy",
    image_dir: ImageDirOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what would otherwise be mended or left out and told.")
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out images with broken annotations, list them, end with 1."),
    ] = False,
) -> None:
    """Convert a data set between COCO, VOC, YOLO and JSONL, split by split."""
    from qwendet.data.convert import Conversion, convert_dataset

    how = Conversion(source, target, images, image_dir, is_strict=strict, skip_bad=skip_bad)
    _show(convert_dataset(src, dst, how, console.progress))


def _show(report: ConversionReport) -> None:
    """Print what was written and what was mended; end with 1 if something was left out."""
    from qwendet.data.convert import conversion_notes

    console.print_table("Boxes", ("split", "images", "label", "boxes"), _rows(report))
    for note in conversion_notes(report):
        console.say(note)
    console.say(f"Wrote {', '.join(str(file) for file in report.files)}.")
    if report.left_out:
        raise typer.Exit(LEFT_SOMETHING_OUT)


def _rows(report: ConversionReport) -> list[tuple[str, int, str, int]]:
    return [
        (split, count, label, boxes)
        for split, count in report.images.items()
        for label, boxes in sorted(report.boxes.get(split, {}).items()) or [("", 0)]
    ]
