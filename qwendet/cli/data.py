"""``qwendet data …``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qwendet.cli.group import StagedGroup
from qwendet.cli.options import (
    LEFT_SOMETHING_OUT,
    FrameOption,
    FromOption,
    ImageDirOption,
    RecordFormatOption,
    SkipBadOption,
    command_line,
)
from qwendet.console import console

if TYPE_CHECKING:
    from qwendet.data.choose_pool import PoolReport
    from qwendet.data.formats.convert import ConversionReport

MOST_LABELS = 40
"""Rows of a split in the table of boxes."""

app = typer.Typer(
    cls=StagedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Convert, divide, check and look at data sets.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[
    Path, typer.Argument(metavar="SRC", help="The data set, a folder or file; stays as it is.")
]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write into; absent or empty.")]
ToOption = Annotated[
    Literal["jsonl", "parquet", "webdataset", "coco", "voc", "yolo", "yolo-seg", "swift", "llamafactory"],
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="jsonl, parquet, webdataset, coco, voc, yolo, yolo-seg (polygons), swift or llamafactory.",
    ),
]
ImagesOption = Annotated[
    Literal["copy", "link", "reference"],
    typer.Option("--images", help="Copy or hard-link beside what is written, or leave where they are."),
]
SeedOption = Annotated[int, typer.Option("--seed", help="The same seed gives the same result.")]


@app.command()
def convert(
    src: Source,
    dst: Target,
    source: FromOption = "auto",
    target: ToOption = "jsonl",
    images: ImagesOption = "copy",
    image_dir: ImageDirOption = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse what would else be repaired or left out and reported."),
    ] = False,
    skip_bad: SkipBadOption = False,
    frame: FrameOption = None,
    output_format: RecordFormatOption = "human",
) -> None:
    """Convert a data set between COCO, VOC, YOLO, JSONL and conversations, split by split."""
    from qwendet.data.formats.convert import Conversion, convert_dataset

    how = Conversion(source, target, images, image_dir, is_strict=strict, skip_bad=skip_bad, frame=frame)
    _show(convert_dataset(src, dst, how), dst)


@app.command()
def split(
    src: Source,
    dst: Target,
    val: Annotated[float, typer.Option("--val", help="Share of the images for validation.")] = 0.1,
    test: Annotated[float, typer.Option("--test", help="Share of the images for the test.")] = 0.0,
    seed: SeedOption = 0,
    source: FromOption = "auto",
    target: ToOption = "jsonl",
    images: ImagesOption = "copy",
    image_dir: ImageDirOption = None,
    skip_bad: SkipBadOption = False,
    frame: FrameOption = None,
    output_format: RecordFormatOption = "human",
) -> None:
    """Divide a data set into training, validation and test; each gets its share of every label.

    Splits that SRC has are forgotten; identical images stay together.
    """
    from qwendet.data.formats.convert import Conversion
    from qwendet.data.split import split_dataset

    how = Conversion(source, target, images, image_dir, skip_bad=skip_bad, frame=frame)
    _show(split_dataset(src, dst, {"val": val, "test": test}, seed, how), dst)


@app.command()
def tile(
    src: Source,
    dst: Target,
    tiles: Annotated[
        str, typer.Option("--tiles", metavar="CxR|PIXELS", help="Columns x rows, or the side of a window.")
    ],
    overlap: Annotated[
        float, typer.Option("--overlap", min=0, max=0.9, help="Least share that two neighbours show.")
    ] = 0.2,
    min_visible: Annotated[
        float,
        typer.Option("--min-visible", min=0, max=1, help="A box of which a window shows less is dropped."),
    ] = 0.3,
    negatives: Annotated[
        float, typer.Option("--negatives", min=0, max=1, help="Share of windows without boxes that is kept.")
    ] = 0.1,
    seed: SeedOption = 0,
    image_dir: ImageDirOption = None,
    output_format: RecordFormatOption = "human",
) -> None:
    """Cut large images into windows to train on; those of an image stay in its split."""
    from qwendet.data.tile import Tiling, read_tiles, tile_dataset

    how = Tiling(read_tiles(tiles), overlap, min_visible, negatives, seed, image_dir)
    _show(tile_dataset(src, dst, how), dst)


@app.command()
def predictions(
    found: Annotated[Path, typer.Argument(metavar="FOUND", help="What infer wrote: JSONL.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="JSON file to write.")],
    tool: Annotated[
        Literal["labelstudio", "fiftyone"], typer.Option("--to", help="The tool that is to show them.")
    ] = "labelstudio",
    least: Annotated[
        float, typer.Option("--min-score", min=0, max=1, help="Leave out boxes with lower scores.")
    ] = 0.3,
    url: Annotated[
        str, typer.Option("--image-url", help="What Label Studio finds the paths of images behind.")
    ] = "/data/local-files/?d=",
    output_format: RecordFormatOption = "human",
) -> None:
    """Write what infer found for Label Studio (pre-annotations with scores) or FiftyOne (labels.json)."""
    from qwendet.data.formats.predictions import write_predictions_for

    count = write_predictions_for(tool, found, out, least, url)
    if console.is_for_machine():
        console.print_record({"file": str(out), "images": count})
    else:
        console.say(f"{count} images → {out}")


@app.command()
def teachers(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="JSONL file to choose from.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="JSONL file to write, for data.teachers.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Demonstrations wanted.")] = 16,
    val: Annotated[
        list[Path] | None,
        typer.Option(
            "--val",
            metavar="FILE",
            help="JSONL file whose images are never chosen. Repeatable; without it val.jsonl and test.jsonl "
            "beside TRAIN.",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="data.root, if the config sets it.")
    ] = None,
    seed: SeedOption = 0,
    output_format: RecordFormatOption = "human",
) -> None:
    """Choose a diverse pool of demonstrations: every label, in sparse, medium and dense scenes."""
    from qwendet.data.choose_pool import choose_pool

    beside = (train.parent / name for name in ("val.jsonl", "test.jsonl"))
    held_out = val if val is not None else [file for file in beside if file.is_file() and file != train]
    report = choose_pool(train, out, count, held_out=held_out, root=root, seed=seed)
    # The config's own words for it: the path from where the user stands.
    settings = [f"data.teachers={report.file.absolute()}", "data.teacher_ratio=0.5"]
    _show_pool(report, held_out, command_line("validate-config", "CONFIG", settings=settings))


def _show_pool(report: PoolReport, held_out: Sequence[Path], further: str) -> None:
    if console.is_for_machine():
        record = {
            "file": str(report.file),
            "shown": report.shown,
            "available": report.available,
            "scenes": report.images,
            "held_out_files": list(map(str, held_out)),
            "held_out": report.held_out,
            "next": further,
        }
        console.print_record(record)
        return
    rows = [(label, shown, report.available[label]) for label, shown in sorted(report.shown.items())]
    console.print_table("Demonstrations", ("label", "images chosen", "images to choose from"), rows)
    console.print_table("Scenes", ("objects", "images chosen"), list(report.images.items()))
    files = ", ".join(map(str, held_out)) or "nothing: give --val"
    console.say(f"Held out: {files}; {report.held_out} training images are also there and were passed over.")
    console.say(f"Wrote {report.file}.")
    console.next_step(further)


def _show(report: ConversionReport, dst: Path) -> None:
    """Print what was written and what was repaired; end with 1 if something was left out."""
    from qwendet.data.formats.convert import conversion_notes
    from qwendet.data.formats.records import SAMPLES

    words = ["data", "check", str(dst)] if report.target in SAMPLES else ["init", "DIR", "--data", str(dst)]
    if report.data_root is not None:
        words += ["--image-dir", str(report.data_root)] if report.target == "jsonl" else []
    further = command_line(*words)
    if console.is_for_machine():
        console.print_record({**_record(report), "next": further}, ok=not report.left_out)
    else:
        console.print_table("Boxes", ("split", "images", "label", "boxes"), _rows(report))
        for note in conversion_notes(report):
            console.say(note)
        console.say(f"Wrote {', '.join(str(file) for file in report.files)}.")
        console.next_step(further)
    if report.left_out:
        raise typer.Exit(LEFT_SOMETHING_OUT)


def _record(report: ConversionReport) -> dict[str, object]:
    return {
        "files": list(map(str, report.files)),
        "images": report.images,
        "boxes": report.boxes,
        "findings": report.findings,
        "left_out": [{"what": problem.what, "where": problem.where} for problem in report.left_out],
        "data_root": None if report.data_root is None else str(report.data_root),
    }


def _rows(report: ConversionReport) -> list[tuple[str, int, str, int]]:
    """The labels of each split; of very many, as expressions are, those with most boxes."""
    rows = []
    for split, count in report.images.items():
        labels = sorted(report.boxes.get(split, {}).items()) or [("", 0)]
        if len(labels) > MOST_LABELS:
            labels.sort(key=lambda item: -item[1])
            rest = labels[MOST_LABELS:]
            labels[MOST_LABELS:] = [(f"and {len(rest):,} more", sum(boxes for _, boxes in rest))]
        rows += [(split, count, label, boxes) for label, boxes in labels]
    return rows
