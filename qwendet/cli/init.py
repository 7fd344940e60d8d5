"""``qwendet init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwendet import console


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the project.")] = Path(),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The embedded small model and generated data: no download, no GPU.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="tiny, a folder, or a hub id; without it Qwen2.5-VL-3B-Instruct."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="JSONL file, folder that data convert wrote, or COCO, VOC or YOLO data."),
    ] = None,
) -> None:
    """Write a commented config, and the data that it needs."""
    from qwendet.starter.project import init_project

    summary = init_project(directory, tiny=tiny, model=model, data=data, tracker=console.progress)
    for note in summary.notes:
        console.say(note)
    console.say(f"Wrote {summary.config}.")
    console.next_step(summary.next_command)
