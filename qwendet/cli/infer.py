"""``qwendet infer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwendet.cli.options import (
    LEFT_SOMETHING_OUT,
    ForeignOption,
    ModelArgument,
    ModeOption,
    OverlapOption,
    RecordFormatOption,
    ResumeOption,
    ServerOption,
    SetOption,
    SkipImagesOption,
    TilesOption,
    again,
    kept_parts,
    next_of,
    split_labels,
    split_shard,
    with_tiles,
)
from qwendet.console import console
from qwendet.errors import left_out_notes
from qwendet.files import partial_of, require_place
from qwendet.inference.sharding import is_first_process

if TYPE_CHECKING:
    from qwendet.infer import InferSummary


InputsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE|DIR|FILE|-",
        help="Images, folders, JSONL or COCO files, .tar or .parquet shards; - reads paths from stdin.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="File to write, .jsonl, .parquet, or COCO results as .json; without it, stdout.",
    ),
]
TeachersOption = Annotated[
    int,
    typer.Option("--teachers", metavar="N", min=0, help="Demonstrations from the pool for each image."),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="A,B",
        help="Look for these instead of the trained labels; needed where nobody knows them.",
    ),
]
ConstrainedOption = Annotated[
    bool, typer.Option("--constrained", help="Text answers cannot leave the grammar of a valid one.")
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Predict the I-th of N parts of the inputs, counted from 0."),
]
VisualizeOption = Annotated[
    Path | None,
    typer.Option("--visualize", metavar="DIR", help="Folder for pictures with the boxes drawn."),
]


def infer(
    model: ModelArgument,
    inputs: InputsArgument,
    output: OutputOption = None,
    mode: ModeOption = None,
    teachers: TeachersOption = 0,
    labels: LabelsOption = None,
    constrained: ConstrainedOption = False,
    visualize: VisualizeOption = None,
    config: ForeignOption = None,
    server: ServerOption = None,
    resume: ResumeOption = False,
    skip_bad: SkipImagesOption = False,
    shard: ShardOption = None,
    tiles: TilesOption = None,
    overlap: OverlapOption = None,
    output_format: RecordFormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Detect objects: one JSON line an image, boxes in pixels of the image as displayed."""
    wanted, part = split_labels(labels), split_shard(shard)
    settings = with_tiles(settings, tiles, overlap)
    if output is not None:
        require_place(output, "--output")
    if visualize is not None:
        require_place(visualize, "--visualize", is_folder=True)
    from qwendet.config.load import load_config

    given = None if config is None else load_config(config)
    from qwendet.infer import infer as run_inference

    with kept_parts(None if output is None else partial_of(output)):
        summary = run_inference(
            model,
            inputs,
            output=output,
            mode=mode,
            teachers=teachers,
            labels=wanted,
            constrained=constrained,
            visualize=visualize,
            overrides=settings,
            given=given,
            server=server,
            resume=resume,
            skip_bad=skip_bad,
            shard=part,
        )
    if not is_first_process():  # of those that a launcher started
        return
    further = again("--visualize", "pictures") if visualize is None else next_of(model, summary.model)
    _report(summary, visualize, further)
    if summary.skipped:
        raise typer.Exit(LEFT_SOMETHING_OUT)


def _report(summary: InferSummary, visualize: Path | None, further: str) -> None:
    """Print predictions that no file takes, and counts."""
    counts = {"images": summary.images, "detections": summary.detections, "rejected": summary.rejected}
    if console.is_for_machine():
        places = {
            "output": None if summary.output is None else str(summary.output),
            "pictures": None if visualize is None else str(visualize),
        }
        found = {} if summary.output else {"predictions": [json.loads(line) for line in summary.lines]}
        left_out = [{"what": problem.what, "where": problem.where} for problem in summary.skipped]
        record = {**counts, "model": summary.model, **places, **found, "left_out": left_out}
        console.print_record({**record, "next": further}, ok=not left_out)
        return
    if summary.output is None:
        console.print_lines(summary.lines)
    written = f" → {summary.output}" if summary.output else ""
    console.say(
        f"{summary.images} image{'s' * (summary.images != 1)}, {summary.detections} detections, "
        f"{summary.rejected} rejected boxes{written}"
    )
    for note in left_out_notes(summary.skipped):
        console.say(note)
    if visualize is not None:
        console.say(f"Drew them into {visualize}.")
    console.next_step(further)
