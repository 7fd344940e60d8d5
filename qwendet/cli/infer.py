"""``qwendet infer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwendet.cli.options import (
    ForeignOption,
    ModelArgument,
    ModeOption,
    RecordFormatOption,
    ServerOption,
    SetOption,
    command_line,
    kept_answers,
    next_of,
    split_labels,
)
from qwendet.console import console
from qwendet.files import partial_of, require_place
from qwendet.inference.sharding import is_first_process

if TYPE_CHECKING:
    from qwendet.infer import InferSummary


InputsArgument = Annotated[
    list[Path], typer.Argument(metavar="IMAGE|DIR|JSONL", help="Images, folders of images, or JSONL files.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="JSONL file to write; without it, stdout."),
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
    output_format: RecordFormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Detect objects: one JSON line an image, boxes in pixels of the image as displayed."""
    console.set_format(output_format)
    wanted = split_labels(labels)
    if output is not None:
        require_place(output, "--output")
    if visualize is not None:
        require_place(visualize, "--visualize", is_folder=True)
    from qwendet.config.load import load_config

    given = None if config is None else load_config(config)
    from qwendet.infer import infer as run_inference

    with kept_answers(None if output is None or server is None else partial_of(output)):
        summary = run_inference(
            model,
            inputs,
            output=output,
            mode=mode,
            teachers=teachers,
            labels=wanted,
            constrained=constrained,
            visualize=visualize,
            overrides=settings or (),
            given=given,
            server=server,
        )
    if not is_first_process():  # of those that a launcher started
        return
    if visualize is None:
        chosen = [] if mode is None else ["--mode", mode]
        chosen += ["--teachers", str(teachers)] if teachers else []
        chosen += [] if labels is None else ["--labels", labels]
        chosen += ["--constrained"] if constrained else []
        chosen += [] if config is None else ["--config", config]
        chosen += [] if server is None else ["--server", server]
        words = ("infer", str(model), *map(str, inputs), *chosen, "--visualize", "pictures")
        further = command_line(*words, settings=settings or ())
    else:
        further = next_of(model, summary.model)
    _report(summary, visualize, further)


def _report(summary: InferSummary, visualize: Path | None, further: str) -> None:
    """Print predictions that no file takes, and counts."""
    counts = {"images": summary.images, "detections": summary.detections, "rejected": summary.rejected}
    if console.is_for_machine():
        places = {
            "output": None if summary.output is None else str(summary.output),
            "pictures": None if visualize is None else str(visualize),
        }
        found = {} if summary.output else {"predictions": [json.loads(line) for line in summary.lines]}
        console.print_record({**counts, "model": summary.model, **places, **found, "next": further})
        return
    if summary.output is None:
        console.print_lines(summary.lines)
    written = f" → {summary.output}" if summary.output else ""
    console.say(
        f"{summary.images} image{'s' * (summary.images != 1)}, {summary.detections} detections, "
        f"{summary.rejected} rejected boxes{written}"
    )
    if visualize is not None:
        console.say(f"Drew them into {visualize}.")
    console.next_step(further)
