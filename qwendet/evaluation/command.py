"""``qwendet eval``: predict a data set, measure the predictions, compare them with another run.

model, DATA ─► predict by head and text, with and without teachers ─► Run, Run … ─► tables, JSON, COCO
                                             base model, other run ─► Comparison ┘
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qwendet.config.schema import Config
from qwendet.data.formats.convert import Conversion
from qwendet.data.labels import labels_of
from qwendet.data.samples import Sample
from qwendet.errors import ConfigError, DataError, Problem, left_out_notes
from qwendet.evaluation.coco import MOST_OF_FEDERATED, coco_ground_truth
from qwendet.evaluation.compare import Comparison, compare_runs
from qwendet.evaluation.dataset import foreign_labels, open_dataset, without_teachers
from qwendet.evaluation.matches import IOU_THRESHOLD
from qwendet.evaluation.saved import align, read_runs
from qwendet.evaluation.scores import SCORE_MEANINGS, Run, run_name, score_run
from qwendet.files import atomic_file
from qwendet.inference.asked import Asked, require_settings
from qwendet.inference.batches import Result, Skipped, window_size
from qwendet.inference.detections import Prediction, Source
from qwendet.inference.inputs import digest_of, with_teachers
from qwendet.inference.parts import predict_parts
from qwendet.inference.predictor import Predictor
from qwendet.inference.served import ServedPredictor, predictor_of
from qwendet.inference.sharding import folder_or_temporary
from qwendet.inference.tiles import require_tiles_that_fit
from qwendet.loader import config_of_model


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes:
        models: who trained the checkpoint, and the base, and how each was asked.
        ground_truth: the samples in COCO's form.
        runs: by head and text, with and without teachers.
        notes: what a user should know, in words.
        left_out: what is broken, and was to be left out.
    """

    checkpoint: str
    models: dict[str, dict[str, Any]]
    data: str
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    ground_truth: dict[str, Any]
    runs: tuple[Run, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    left_out: tuple[Problem, ...] = ()

    def to_record(self, *, with_predictions: bool) -> dict[str, Any]:
        """All numbers, as JSON can hold them; what was found, too, for another run's comparison."""
        annotations = self.ground_truth["annotations"]
        return {
            "checkpoint": self.checkpoint,
            "models": self.models,
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


def evaluate_model(
    model: Path,
    data: Path,
    *,
    mode: str | None = None,
    teachers: int = 0,
    compare: Path | None = None,
    overrides: Sequence[str] = (),
    given: Config | None = None,
    how: Conversion | None = None,
    server: str | None = None,
    kept: Path | None = None,
) -> Evaluation:
    """Measure a model on a JSONL file or a data set folder.

    Args:
        model: a checkpoint, or any model of a family, in a folder or on the hub.
        data: as :func:`~qwendet.evaluation.dataset.open_dataset` takes it.
        mode: ``head``, ``text`` or ``both``; ``None`` takes the config's, and text where a base has no head.
        teachers: if not 0, everything is measured twice: without demonstrations, and with this many from
            the pool (a sample's own come first).
        compare: another run over the same data: a file that ``eval --json``, ``infer`` or ``train`` wrote, or
            another model (the base), which is then measured as well.
        overrides: ``key=value`` for the config.
        given: how those models were trained that have no manifest.
        how: how ``data`` is read: its format, the folder of its images, what to do about mistakes.
        server: URL of the server that answers in the model's place, in text.
        kept: folder for predictions as they come; what is there is not predicted again.

    Raises:
        QwendetError: for a model, data or option that cannot be used.
    """
    require_settings(model, overrides)
    samples, notes, left_out = open_dataset(data, how)
    skip_bad = how is not None and how.skip_bad
    # Read before hours are spent on predicting.
    is_file = compare is not None and (compare.is_file() or compare.suffix in (".json", ".jsonl"))
    others = read_runs(compare) if compare is not None and is_file else {}
    base = None if is_file else compare
    asked = {path: config_of_model(str(path)) for path in (model, base) if path is not None}
    foreign = {path for path, (_, is_foreign) in asked.items() if is_foreign}

    def how_to_ask(path: Path, labels: Sequence[str]) -> Asked:
        stated = given if path in foreign or not foreign else None
        return {"overrides": overrides, "given": stated, "labels_of_data": labels}

    in_data = labels_of(samples, skip_bad=False) or samples[0].student.labels or ()
    check = partial(require_tiles_that_fit, samples=samples)
    predictor = predictor_of(model, server, **how_to_ask(model, in_data) | {"mode": mode, "check": check})
    sources, base_has_head = predictor.sources(mode), base is None or asked[base][0].detection.enabled
    if not base_has_head and "text" not in sources:
        if mode is not None:
            raise ConfigError(f"mode is {mode}, but {base} has no head to compare with", "--mode", "use both")
        sources += ("text",)
        notes.append(f"{base} answers in text alone: text is measured as well.")
    labels, models = predictor.bundle.labels, {str(model): predictor.origin()}
    notes += _few_detections(samples, predictor.bundle.config.infer.max_detections)
    notes += foreign_labels(samples, labels, str(data))
    before: dict[str, Found] = {}
    with folder_or_temporary(kept) as folder:
        found = _predict_all(predictor, sources, samples, teachers, folder, skip_bad)
        if base is not None:
            del predictor  # two models need not fit side by side
            own = sources if base_has_head else ("text",)
            earlier = Predictor.from_checkpoint(base, **how_to_ask(base, labels))
            models[str(base)] = earlier.origin()
            before = _predict_all(earlier, own, samples, teachers, folder / "base", skip_bad)
    usable, problems = _usable([one.results for one in (*found.values(), *before.values())])
    samples = [samples[index] for index in usable]
    truth = coco_ground_truth(samples, next(iter(found.values())).predictions(usable), labels)
    if base is not None:
        others = {name: (one.source, one.predictions(usable)) for name, one in before.items()}
    runs = tuple(
        score_run(truth, samples, one.predictions(usable), labels, one.source, one.teachers)
        for one in found.values()
    )
    return Evaluation(
        checkpoint=str(model),
        models=models,
        data=str(data),
        labels=labels,
        samples=tuple(samples),
        ground_truth=truth,
        runs=runs,
        comparisons=_compare(runs, others, truth, samples, labels, str(compare)),
        notes=(*notes, *left_out_notes(problems)),
        left_out=(*left_out, *problems),
    )


class Found(NamedTuple):
    """What a source found, with so many demonstrations; a result a sample."""

    source: Source
    teachers: int | None
    results: list[Result]

    def predictions(self, usable: Sequence[int]) -> list[Prediction]:
        """Those of the samples that every run could use."""
        return [result for index in usable if isinstance(result := self.results[index], Prediction)]


def _few_detections(samples: Sequence[Sample], most: int) -> list[str]:
    """Say where fewer detections are kept than LVIS counts."""
    if most >= MOST_OF_FEDERATED or all(sample.student.neg_labels is None for sample in samples):
        return []
    counted = f"The annotations are federated, and LVIS counts {MOST_OF_FEDERATED} detections an image, but"
    fix = f"add --set infer.max_detections={MOST_OF_FEDERATED}"
    return [f"{counted} infer.max_detections is {most}: {fix}."]


def _predict_all(
    predictor: Predictor | ServedPredictor,
    sources: Sequence[Source],
    samples: Sequence[Sample],
    teachers: int,
    kept: Path,
    skip_bad: bool,
) -> dict[str, Found]:
    """What is found by each source, without and with demonstrations, by the name of the run."""
    settings: list[tuple[int | None, Sequence[Sample]]] = [(None, samples)]
    if teachers:
        shown = with_teachers(samples, predictor.bundle.config, teachers)
        settings = [(0, without_teachers(samples)), (teachers, shown)]
    digests = [digest_of(asked, skip_bad=skip_bad) for _, asked in settings]
    found: dict[str, Found] = {}
    for source in sources:
        for (count, asked), digest in zip(settings, digests, strict=True):
            name, inputs = run_name(source, count), {"images": len(asked), "sha256": digest}
            plan = predictor.plan(asked, window_size(len(asked), predictor.batch_size))
            parts = predict_parts(predictor, plan, source, kept / name, inputs, skip_bad=skip_bad)
            found[name] = Found(source, count, list(parts.read(plan)))
    return found


def _usable(runs: Sequence[Sequence[Result]]) -> tuple[list[int], list[Problem]]:
    """The samples that every run could use, and what is wrong with the others."""
    broken: dict[int, tuple[Problem, ...]] = {}
    for results in runs:
        broken |= {at: one.problems for at, one in enumerate(results) if isinstance(one, Skipped)}
    usable = [index for index in range(len(runs[0])) if index not in broken]
    return usable, [problem for problems in broken.values() for problem in problems]


def _compare(
    runs: Sequence[Run],
    others: dict[str, tuple[Source, list[Prediction]]],
    truth: dict[str, Any],
    samples: Sequence[Sample],
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
        other = score_run(truth, samples, predictions, labels, run.source, run.teachers)
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
        "f1_over_ious": run.f1_over_ious,
        "labels": [label._asdict() | {"at": label.at._asdict()} for label in run.labels],
        "answers": None if run.answers is None else run.answers._asdict(),
    }
    if with_predictions:
        record["predictions"] = [asdict(prediction) for prediction in run.predictions]
    return record


def write_json(evaluation: Evaluation, file: Path) -> None:
    """Write all numbers and predictions, for programs and for ``--compare``."""
    _write(evaluation.to_record(with_predictions=True), file, indent=1)


def _write(content: object, file: Path, indent: int | None = None) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=indent) + "\n"
    with atomic_file(file) as path:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_coco(evaluation: Evaluation, file: Path) -> list[Path]:
    """Write COCO results, and beside them the ground truth that their ids belong to.

    Several runs become several files, named after the run; the ground truth is the last of those returned.
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
        _write(content, place)
    return list(contents)
