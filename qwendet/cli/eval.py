"""``qwendet eval``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwendet.cli.benchmark import measure_benchmark
from qwendet.cli.options import (
    LEFT_SOMETHING_OUT,
    ForeignOption,
    FrameOption,
    FromOption,
    ImageDirOption,
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
    with_tiles,
)
from qwendet.console import console
from qwendet.files import partial_of, require_place
from qwendet.inference.sharding import is_first_process, joined_processes, wait_for_all

if TYPE_CHECKING:
    from qwendet.evaluation.command import Evaluation
    from qwendet.evaluation.compare import Comparison
    from qwendet.evaluation.scores import Run

MOST_LABELS = 40

DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="JSONL file, or a data set folder: its test split first.")
]
TeachersOption = Annotated[
    int,
    typer.Option(
        "--teachers", metavar="N", min=0, help="Measure without and with N demonstrations from the pool."
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="DIR", help="Folder for index.html: curves, errors, pictures."),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write all numbers and predictions, for --compare."),
]
CocoOption = Annotated[
    Path | None,
    typer.Option("--coco", metavar="FILE", help="Write COCO results, and their ground truth beside them."),
]
BenchmarkOption = Annotated[
    str | None,
    typer.Option(
        "--benchmark",
        metavar="NAME",
        help="DATA is a published benchmark: odinw13, odinw35, rf100vl, coco, lvis or refcoco.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="Of a benchmark: results of each set, table, page."),
]
CompareOption = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="BASE",
        help="Before and after: another MODEL, such as the base, or a file of eval --json, infer or train.",
    ),
]


def evaluate(
    model: ModelArgument,
    data: DataArgument,
    mode: ModeOption = None,
    teachers: TeachersOption = 0,
    report: ReportOption = None,
    json_file: JsonOption = None,
    coco: CocoOption = None,
    compare: CompareOption = None,
    config: ForeignOption = None,
    server: ServerOption = None,
    tiles: TilesOption = None,
    overlap: OverlapOption = None,
    source: FromOption = "auto",
    image_dir: ImageDirOption = None,
    skip_bad: SkipImagesOption = False,
    resume: ResumeOption = False,
    frame: FrameOption = None,
    benchmark: BenchmarkOption = None,
    output: OutputOption = None,
    train: Annotated[
        bool, typer.Option("--train", help="Of a benchmark: fine-tune on each set first.")
    ] = False,
    shots: Annotated[
        int | None,
        typer.Option("--shots", metavar="N", min=1, help="With --train: N objects of each label."),
    ] = None,
    output_format: RecordFormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Measure a model on annotated images: COCO metrics, the best score threshold, label by label."""
    settings = with_tiles(settings, tiles, overlap)
    if benchmark is not None or output is not None or train or shots is not None:
        others = {
            "--teachers": teachers,
            "--report": report,
            "--json": json_file,
            "--coco": coco,
            "--compare": compare,
            "--server": server,
            "--image-dir": image_dir,
            "--frame": frame,
            "--from": source != "auto",
        }
        measure_benchmark(
            benchmark,
            model,
            data,
            output,
            [name for name, value in others.items() if value],
            mode=mode,
            settings=settings,
            train=train,
            shots=shots,
            config=config,
        )
        return
    # A place that cannot be written to is found before hours of predicting.
    for place, option in ((json_file, "--json"), (coco, "--coco"), (report, "--report")):
        if place is not None:
            require_place(place, option, is_folder=option == "--report")
    from qwendet.config.load import load_config

    given = None if config is None else load_config(config)
    kept = next((partial_of(place) for place in (json_file, coco, report) if place is not None), None)
    from qwendet.data.formats.convert import Conversion
    from qwendet.evaluation.command import evaluate_model
    from qwendet.inference.parts import require_free

    require_free(kept, "--json", resume=resume)
    how = Conversion(source, image_dir=image_dir, skip_bad=skip_bad, frame=frame)
    with joined_processes(), kept_parts(kept):
        found = evaluate_model(
            model,
            data,
            mode=mode,
            teachers=teachers,
            compare=compare,
            overrides=settings,
            given=given,
            how=how,
            server=server,
            kept=kept,
        )
        written = _write(found, report, json_file, coco) if is_first_process() else []
        wait_for_all()  # until each process has read what is kept
        if kept is not None and is_first_process():
            shutil.rmtree(kept, ignore_errors=True)
    if is_first_process():
        further = again("--report", "report") if report is None else next_of(model, found.models[str(model)])
        _tell(found, written, further)
        if found.left_out:
            raise typer.Exit(LEFT_SOMETHING_OUT)


def _write(found: Evaluation, report: Path | None, json_file: Path | None, coco: Path | None) -> list[Path]:
    """Write all that is wanted; returns the files."""
    from qwendet.evaluation.command import write_coco, write_json

    written: list[Path] = []
    if json_file is not None:
        write_json(found, json_file)
        written.append(json_file)
    if coco is not None:
        written += write_coco(found, coco)
    if report is not None:
        from qwendet.report import write_report

        written.append(write_report(found, report))
    return written


def _tell(found: Evaluation, written: Sequence[Path], further: str) -> None:
    if console.is_for_machine():
        record = found.to_record(with_predictions=False)
        record |= {"files": list(map(str, written)), "next": further}
        console.print_record(record, ok=not found.left_out)
        return
    _print(found)
    if written:
        console.say(f"Wrote {', '.join(map(str, written))}.")
    console.next_step(further)


def _print(found: Evaluation) -> None:
    columns = ["metric", *(f"{run.name} (score: {run.source})" for run in found.runs)]
    figures = [run.figures() for run in found.runs]
    rows = [[name, *(numbers[name] for numbers in figures)] for name in figures[0]]
    boxes = len(found.runs[0].matches.truth)
    title = f"{len(found.samples)} images, {boxes} boxes; COCO metrics, best F1 at IoU 0.5"
    console.print_table(title, columns, rows)
    for run in found.runs:
        _print_labels(run)
    _print_answers(found.runs)
    for comparison in found.comparisons:
        _print_comparison(comparison)
    for note in found.notes:
        console.say(note)


def _print_labels(run: Run) -> None:
    columns = ("label", "boxes", "AP", "AP50", "precision", "recall", "F1", "mean IoU", "own best score")
    rows = [
        [
            label.label, label.boxes, label.AP, label.AP50,
            label.at.precision, label.at.recall, label.at.f1, label.at.mean_iou, label.best_threshold,
        ]
        for label in run.labels
    ]  # fmt: skip
    hidden = f", {len(rows) - MOST_LABELS} more in --json" if len(rows) > MOST_LABELS else ""
    threshold = "any score" if run.at_best.threshold is None else f"score ≥ {run.at_best.threshold:.4f}"
    console.print_table(f"Labels by {run.name}, at {threshold}{hidden}", columns, rows[:MOST_LABELS])


def _print_answers(runs: Sequence[Run]) -> None:
    answered = [run for run in runs if run.answers is not None]
    if answered:
        names = answered[0].answers._fields if answered[0].answers else ()
        rows = [[name.replace("_", " "), *(getattr(run.answers, name) for run in answered)] for name in names]
        console.print_table("Text answers", ["count", *(run.name for run in answered)], rows)


def _print_comparison(comparison: Comparison) -> None:
    interval = f"{comparison.confidence:.0%} interval"
    rows = [
        [
            item.metric, item.other, item.ours, item.difference,
            None if item.low is None else f"{item.low:+.4f} … {item.high:+.4f}",
        ]
        for item in comparison.differences
    ]  # fmt: skip
    console.print_table(
        f"Before: {comparison.other}, after: {comparison.ours}; {interval} by {comparison.resamples} paired"
        f" bootstrap resamples of the images, seed {comparison.seed}",
        ("metric", "before", "after", "difference", interval),
        rows,
    )
