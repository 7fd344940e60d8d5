"""``qwendet export``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qwendet.cli.options import CheckpointArgument, RecordFormatOption
from qwendet.console import console
from qwendet.errors import ConfigError

if TYPE_CHECKING:
    from qwendet.export.directory import ExportSummary


def export(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Type of the weights; without it, that of the training."),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Most bytes of a weight file.")
    ] = "5GB",
    head: Annotated[
        Literal["onnx"] | None,
        typer.Option("--head", help="Write vision tower and head as ONNX graphs too."),
    ] = None,
    image_size: Annotated[
        str, typer.Option("--image-size", metavar="WxH", help="Size of the images that the graphs are for.")
    ] = "644x476",
    output_format: RecordFormatOption = "human",
) -> None:
    """Write a merged, plain Hugging Face directory, for transformers and vLLM."""
    console.set_format(output_format)
    size, shard_size = _size(image_size), _shard_size(max_shard_size)
    from qwendet.export.directory import export as run_export

    summary = run_export(
        checkpoint,
        output,
        dtype=dtype,
        max_shard_size=shard_size,
        onnx_size=size if head == "onnx" else None,
    )
    _report(summary, shlex.join(["vllm", "serve", str(summary.output)]))


def _report(summary: ExportSummary, further: str) -> None:
    if console.is_for_machine():
        record = {
            "output": str(summary.output),
            "parameters": summary.num_parameters,
            "dtype": summary.dtype,
            "files": list(summary.files),
            "merge_error": summary.merge_error,
            "graphs": {graph.file: graph.error for graph in summary.graphs},
            "next": further,
        }
        console.print_record(record)
        return
    if summary.merge_error is not None:
        console.say(f"The adapter is merged; the logits differ by {summary.merge_error:.1e} of their size.")
    for graph in summary.graphs:
        console.say(f"{graph.file}: onnxruntime is within {graph.error:.1e} of torch, relative.")
    files = f"{len(summary.files)} weight file{'s' if len(summary.files) > 1 else ''}"
    console.say(
        f"{summary.num_parameters:,} parameters in {summary.dtype}, {files}, reloaded and compared"
        f" → {summary.output}"
    )
    console.next_step(further)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"expected width x height, got {text!r}", "--image-size", "for example: 644x476")
    return int(width), int(height)


def _shard_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(KB|MB|GB|TB)", text.upper()):
        raise ConfigError(
            f"expected a number and KB, MB, GB or TB, got {text!r}", "--max-shard-size", "for example: 5GB"
        )
    return text.upper()
