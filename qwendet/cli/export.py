"""``qwendet export``."""

from __future__ import annotations

import re
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
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="NAME", help="Upload it to the hub, such as team/cells; private."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository made by --push is public.")] = False,
    output_format: RecordFormatOption = "human",
) -> None:
    """Write a merged, plain Hugging Face directory, for transformers and vLLM."""
    shard_size = _shard_size(max_shard_size)
    from qwendet.export import hub
    from qwendet.export.directory import export as run_export

    if push is not None:
        hub.require_repository(push)
    elif public:
        raise ConfigError("--public is about what --push makes", "--public", "add --push NAME")
    summary = run_export(checkpoint, output, dtype=dtype, max_shard_size=shard_size)
    commit = None if push is None else hub.push(output, push, private=not public)
    _report(summary, commit)


def _report(summary: ExportSummary, commit: str | None) -> None:
    if console.is_for_machine():
        record = {
            "output": str(summary.output),
            "parameters": summary.num_parameters,
            "dtype": summary.dtype,
            "files": list(summary.files),
            "merge_error": summary.merge_error,
            "commit": commit,
            "next": summary.launch,
        }
        console.print_record(record)
        return
    if summary.merge_error is not None:
        console.say(f"The adapter is merged; the logits differ by {summary.merge_error:.1e} of their size.")
    files = f"{len(summary.files)} weight file{'s' if len(summary.files) > 1 else ''}"
    console.say(
        f"{summary.num_parameters:,} parameters in {summary.dtype}, {files}, reloaded and compared"
        f" → {summary.output}"
    )
    if commit is not None:
        console.say(f"Uploaded: {commit}")
    console.next_step(summary.launch)


def _shard_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(KB|MB|GB|TB)", text.upper()):
        raise ConfigError(
            f"expected a number and KB, MB, GB or TB, got {text!r}", "--max-shard-size", "for example: 5GB"
        )
    return text.upper()
