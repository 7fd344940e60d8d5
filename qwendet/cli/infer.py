"""``qwendet infer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qwendet import console
from qwendet.cli.options import SetOption, split_labels
from qwendet.sharding import is_first_process


def infer(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder that train wrote, such as run/final.")
    ],
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|DIR|JSONL", help="Images, folders of images, or JSONL files."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="JSONL file to write; without it, stdout."),
    ] = None,
    mode: Annotated[
        Literal["head", "text", "both"] | None,
        typer.Option("--mode", help="Who answers; without it, the head where there is one, else text."),
    ] = None,
    teachers: Annotated[
        int,
        typer.Option("--teachers", metavar="N", min=0, help="Demonstrations from the pool for each image."),
    ] = 0,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B", help="Look for these instead of the trained labels."),
    ] = None,
    constrained: Annotated[
        bool,
        typer.Option("--constrained", help="Text answers cannot leave the grammar of a valid one."),
    ] = False,
    visualize: Annotated[
        Path | None,
        typer.Option("--visualize", metavar="DIR", help="Folder for pictures with the boxes drawn."),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Detect objects: one JSON line an image, boxes in pixels of the image as displayed."""
    from qwendet.inference import infer as run_inference

    summary = run_inference(
        checkpoint,
        inputs,
        output=output,
        mode=mode,
        teachers=teachers,
        labels=split_labels(labels),
        constrained=constrained,
        visualize=visualize,
        overrides=settings or (),
        tracker=console.progress,
    )
    if not is_first_process():  # of those that a launcher started
        return
    if summary.output is None:
        console.print_lines(summary.lines)
    written = f" → {summary.output}" if summary.output else ""
    console.say(
        f"{summary.images} images, {summary.detections} detections, "
        f"{summary.rejected} rejected boxes{written}"
    )
