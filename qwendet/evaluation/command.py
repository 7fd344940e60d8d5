"""``qwendet eval``: predict a data set, measure the predictions, compare them with another run.

checkpoint, DATA ─► predict by head and text, with and without teachers ─► Run, Run … ─► tables, JSON, COCO
                                                        other run ─► Comparison ┘
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwendet.data.formats.convert import Conversion
from qwendet.data.samples import Sample
from qwendet.errors import ConfigError, DataError
from qwendet.evaluation.coco import coco_ground_truth
from qwendet.evaluation.compare import Comparison, compare_runs
from qwendet.evaluation.dataset import foreign_labels, open_dataset, without_teachers
from qwendet.evaluation.matches import IOU_THRESHOLD
from qwendet.evaluation.saved import align, read_runs
from qwendet.evaluation.scores import SCORE_MEANINGS, Run, run_name, score_run
from qwendet.files import atomic_file, find_folder
from qwendet.inference.detections import Prediction, Source
from qwendet.inference.inputs import with_teachers
from qwendet.inference.predictor import Predictor
from qwendet.progress import track


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes:
        checkpoint: what was measured.
        data: what on.
        labels: the model's label set.
        samples: the images and their objects.
        ground_truth: the same in COCO's form.
        runs: by head and text, with and without teachers.
        comparisons: with the other run, where one was given.
        notes: what a user should know, in words.
    """

    checkpoint: str
    data: str
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    ground_truth: dict[str, Any]
    runs: tuple[Run, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def to_record(self, *, with_predictions: bool) -> dict[str, Any]:
        """All numbers, as JSON can hold them; ``null`` where there is nothing to measure.

        Args:
            with_predictions: also what was found in each image, so that other runs can be compared with it.
        """
        annotations = self.ground_truth["annotations"]
        return {
            "checkpoint": self.checkpoint,
            "data": self.data,
            "labels": list(self.labels),
            "images": len(self.samples),
            "boxes": sum(not item["ignore"] for item in annotations),
            "ignored_boxes": sum(item["ignore"] for item in annotations),
            "iou_threshold": IOU_THRESHOLD,
            "notes": list(self.notes),
            "runs": [_run_record(run, with_predictions) for run in self.runs],
            "comparisons": [
                comparison._asdict() | {"differences": [item._asdict() for item in comparison.differences]}
                for comparison in self.comparisons
            ],
        }


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    *,
    mode: str | None = None,
    teachers: int = 0,
    compare: Path | None = None,
    overrides: Sequence[str] = (),
    how: Conversion | None = None,
) -> Evaluation:
    """Measure a checkpoint.

    Args:
        checkpoint: a checkpoint with a manifest.
        data: a JSONL file or a data set folder.
        mode: ``head``, ``text`` or ``both``; ``None`` takes the config's.
        teachers: if not 0, everything is measured twice: without demonstrations, and with this many from
            the pool (a sample's own come first).
        compare: another run over the same data: a file that ``eval --json``, ``infer`` or ``train`` wrote, or
            a checkpoint, which is then measured as well.
        overrides: ``key=value`` for the checkpoint's config.
        how: how ``data`` is read: its format, the folder of its images, what to do about mistakes.

    Raises:
        QwendetError: for a checkpoint, data or option that cannot be used.
    """
    samples, notes = open_dataset(data, how)
    is_checkpoint = compare is not None and find_folder(compare)
    # Read before hours are spent on predicting.
    others = read_runs(compare) if compare is not None and not is_checkpoint else {}
    predictor = Predictor.from_checkpoint(checkpoint, overrides=overrides)
    labels = predictor.bundle.labels
    notes += foreign_labels(samples, labels, str(data))
    found = _predict_all(predictor, samples, mode, teachers)
    truth = coco_ground_truth(samples, found[0][2], labels)
    runs = tuple(score_run(truth, predictions, labels, source, count) for source, count, predictions in found)
    if compare is not None and is_checkpoint:
        others = _runs_of_checkpoint(compare, samples, mode, teachers, overrides)
    return Evaluation(
        checkpoint=str(checkpoint),
        data=str(data),
        labels=labels,
        samples=tuple(samples),
        ground_truth=truth,
        runs=runs,
        comparisons=_compare(runs, others, truth, labels, str(compare)),
        notes=tuple(notes),
    )


Found = tuple[Source, int | None, list[Prediction]]


def _predict_all(
    predictor: Predictor, samples: Sequence[Sample], mode: str | None, teachers: int
) -> list[Found]:
    """Predict by each source, without and with teachers where these are asked for."""
    settings: list[tuple[int | None, Sequence[Sample]]] = [(None, samples)]
    if teachers:
        shown = with_teachers(samples, predictor.bundle.config, teachers)
        settings = [(0, without_teachers(samples)), (teachers, shown)]
    found: list[Found] = []
    for source in predictor.sources(mode):
        for count, asked in settings:
            with track(f"predicting by {source}", len(asked)) as advance:
                predictions = predictor.predict_all(asked, source, advance)
            found.append((source, count, predictions))
    return found


def _runs_of_checkpoint(
    other: Path,
    samples: Sequence[Sample],
    mode: str | None,
    teachers: int,
    overrides: Sequence[str],
) -> dict[str, tuple[Source, list[Prediction]]]:
    predictor = Predictor.from_checkpoint(other, overrides=overrides)
    found = _predict_all(predictor, samples, mode, teachers)
    return {run_name(source, count): (source, predictions) for source, count, predictions in found}


def _compare(
    runs: Sequence[Run],
    others: dict[str, tuple[Source, list[Prediction]]],
    truth: dict[str, Any],
    labels: Sequence[str],
    where: str,
) -> tuple[Comparison, ...]:
    """Compare each run with the other file's of the same name, else with its first of the same source."""
    if not others:
        return ()
    images = [image["file_name"] for image in truth["images"]]
    comparisons = []
    for run in runs:
        same_source = [name for name, (source, _) in others.items() if source == run.source]
        if not same_source:
            continue
        name = run.name if run.name in same_source else same_source[0]
        predictions = align(others[name][1], images, where)
        other = score_run(truth, predictions, labels, run.source, run.teachers)
        comparisons.append(compare_runs(run, other, (run.name, f"{where} ({name})"), truth))
    if not comparisons:
        measured = " and ".join(sorted({run.source for run in runs}))
        raise DataError(
            f"the other run holds no scores by {measured}, which is what is measured now",
            where,
            "scores of head and text are not comparable: choose --mode accordingly",
        )
    return tuple(comparisons)


def _run_record(run: Run, with_predictions: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": run.name,
        "source": run.source,
        "score": SCORE_MEANINGS[run.source],
        "teachers": run.teachers,
        "metrics": run.metrics,
        "at_best_f1": run.at_best._asdict(),
        "labels": [label._asdict() | {"at": label.at._asdict()} for label in run.labels],
        "answers": None if run.answers is None else run.answers._asdict(),
    }
    if with_predictions:
        record["predictions"] = [asdict(prediction) for prediction in run.predictions]
    return record


def write_json(evaluation: Evaluation, file: Path) -> None:
    """Write all numbers and predictions, for programs and for ``--compare``."""
    record = evaluation.to_record(with_predictions=True)
    with atomic_file(file) as path:
        path.write_text(
            json.dumps(record, ensure_ascii=False, indent=1) + "\n",
            encoding="utf-8",
            errors="backslashreplace",
        )


def write_coco(evaluation: Evaluation, file: Path) -> list[Path]:
    """Write COCO results, and beside them the ground truth that their ids belong to.

    Several runs become several files, named after the run.

    Returns:
        The files, the ground truth last.

    Raises:
        ConfigError: if the file's name would be that of the ground truth.
    """
    truth = file.with_name(f"{file.stem}.ground_truth{file.suffix or '.json'}")
    several = len(evaluation.runs) > 1
    contents: dict[Path, Any] = {}
    for run in evaluation.runs:
        name = run.name.replace(", ", "_").replace(" ", "_")
        place = file.with_name(f"{file.stem}.{name}{file.suffix}") if several else file
        contents[place] = [{**result, "source": run.source} for result in run.results]
    if file.is_dir():
        raise ConfigError("expected a file", "--coco", f"for example: --coco {file / 'results.json'}")
    contents[truth] = evaluation.ground_truth
    for place, content in contents.items():
        with atomic_file(place) as path:
            path.write_text(
                json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
            )
    return list(contents)
