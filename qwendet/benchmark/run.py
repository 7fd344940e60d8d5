"""``qwendet eval --benchmark``: every set of a published benchmark, one table.

sets_of(DIR) ─► each set: [few shots ─► init ─► train] ─► evaluate_model ─► OUT/sets/NAME.json ─► Table
                          OUT/trained/NAME/             a set that is there is not measured again
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from qwendet.benchmark.layouts import Benchmark, BenchmarkSet, Part, sets_of
from qwendet.config.load import load_config
from qwendet.config.schema import Config
from qwendet.data.formats.convert import Conversion
from qwendet.data.formats.jsonl_writer import sample_line
from qwendet.data.samples import Sample
from qwendet.errors import ConfigError
from qwendet.evaluation.command import evaluate_model
from qwendet.evaluation.dataset import open_dataset
from qwendet.files import atomic_file, atomic_folder, partial_of, sha256_of_file
from qwendet.init.project import init_project
from qwendet.loading.manifest import MANIFEST
from qwendet.progress import track

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "lvis": ("AP", "AP_r", "AP_c", "AP_f", "F1@mIoU"),
    "refcoco": ("accuracy",),
}
"""Metrics in the table of a benchmark; of the others :data:`OF_COCO`."""
OF_COCO = ("AP", "AP50", "F1@mIoU")
MOST_DETECTIONS = {"lvis": "infer.max_detections=300"}
"""What a benchmark counts of an image, where it is more than ``infer.max_detections`` says by default."""
SHOT_SEED = 3
"""Of the images that ``--shots`` chooses."""


@dataclass(frozen=True)
class Asked:
    """What a table is of; sets that were measured otherwise are not put into it.

    Attributes:
        benchmark: its name.
        model: what is measured, or trained from.
        mode: head, text, both or ``None``.
        overrides: ``key=value``, of evaluation and training.
        train: fine-tune on each set first.
        shots: least objects of each label to train on; ``None`` takes all images.
    """

    benchmark: Benchmark
    model: Path
    mode: str | None
    overrides: tuple[str, ...]
    train: bool
    shots: int | None

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it, with the SHA-256 of the model's manifest; empty without one."""
        manifest = self.model / MANIFEST
        digest = sha256_of_file(manifest) if manifest.is_file() else ""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return record | {"manifest": digest}


def run_benchmark(asked: Asked, folder: Path, output: Path, given: Config | None = None) -> dict[str, Any]:
    """Measure every set that was not measured yet, and gather all.

    Args:
        asked: what to measure.
        folder: of the benchmark.
        output: results of each set, the models that were trained, ``table.json``.
        given: how a model without a manifest was trained.

    Returns:
        What ``table.json`` holds: ``columns``, names of metrics; ``sets``, the metrics of each set and source
        (``head`` or ``text``), ``None`` where there is nothing to measure; ``means`` over the sets;
        ``left_out``, the number of images and annotations that are broken, of sets with some.

    Raises:
        QwendetError: for what cannot be asked, and a layout, model or output folder that cannot be used.
    """
    _require_possible(asked)
    sets = sets_of(asked.benchmark, folder, fine_tuned=asked.train)
    wanted = asked.to_record()
    _require_same(wanted, output)
    records = {}
    with track(f"measuring {asked.benchmark}", len(sets)) as advance:
        for number, item in enumerate(sets, start=1):
            place = output / "sets" / f"{item.name}.json"
            if not place.is_file():
                kept = partial_of(place)
                _write({"asked": wanted, **_measure(asked, item, output, kept, given)}, place)
                shutil.rmtree(kept, ignore_errors=True)
            records[item.name] = json.loads(place.read_text(encoding="utf-8"))
            advance(number, item.name)
    table = {"asked": wanted, **_table(COLUMNS.get(asked.benchmark, OF_COCO), records)}
    _write(table, output / "table.json")
    return table


def _write(record: Mapping[str, Any], place: Path) -> None:
    with atomic_file(place) as path:
        path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _require_possible(asked: Asked) -> None:
    """Refuse what contradicts itself."""
    if asked.shots is not None and not asked.train:
        raise ConfigError("nothing is trained", "--shots", "add --train, or leave it out")
    if asked.shots is not None and asked.benchmark == "refcoco":
        what = "--shots counts objects of each label, and each expression is a label of its own"
        raise ConfigError(what, "--shots", "leave it out")
    if any(setting.startswith("train.output_dir") for setting in asked.overrides):
        what = "each set is trained in a folder of its own below --output"
        raise ConfigError(what, "--set train.output_dir", "leave it out")


def _require_same(wanted: Mapping[str, Any], output: Path) -> None:
    """Refuse to gather results of another model or other settings."""
    for file in sorted((output / "sets").glob("*.json")):
        stored = json.loads(file.read_text(encoding="utf-8"))["asked"]
        differing = [f"{key} was {stored.get(key)!r}" for key in wanted if stored.get(key) != wanted[key]]
        if differing:
            raise ConfigError(
                f"{file.name} was measured otherwise: {', '.join(differing)}", str(output),
                "name another --output, or remove this folder",
            )  # fmt: skip


def few_shots(samples: Sequence[Sample], shots: int, seed: int = SHOT_SEED) -> list[Sample]:
    """Images drawn one after the other, kept while one of their labels has fewer than ``shots`` objects.

    As in ODinW (Li et al. 2022) a label may get more, because images hold several objects.
    """
    counts: dict[str, int] = {}
    chosen = []
    for index in Random(seed).sample(range(len(samples)), len(samples)):
        found = [item.desc for item in samples[index].student.objects if not item.crowd]
        if any(counts.get(label, 0) < shots for label in found):
            chosen.append(index)
            for label in found:
                counts[label] = counts.get(label, 0) + 1
    return [samples[index] for index in sorted(chosen)]


def _measure(
    asked: Asked, item: BenchmarkSet, output: Path, kept: Path, given: Config | None
) -> dict[str, Any]:
    model = asked.model
    if asked.train:
        model, given = _trained(asked, item, output / "trained" / item.project), None
    most = [MOST_DETECTIONS[asked.benchmark]] if asked.benchmark in MOST_DETECTIONS else []
    found = evaluate_model(
        model,
        item.measured.annotations,
        mode=asked.mode,
        overrides=most if asked.train else [*most, *asked.overrides],
        given=given,
        how=_read(item.measured),
        kept=kept,
    )
    left_out = [asdict(problem) for problem in found.left_out]
    return found.to_record(with_predictions=False) | {"left_out": left_out}


def _trained(asked: Asked, item: BenchmarkSet, project: Path) -> Path:
    """The model fine-tuned on a set; a run that was cut off goes on."""
    from qwendet.train import train

    config_file, final = project / "config.yaml", project / "run" / "final"
    if not config_file.is_file():
        shutil.rmtree(project, ignore_errors=True)
        samples, *_ = open_dataset(item.train.annotations, _read(item.train))
        chosen = samples if asked.shots is None else few_shots(samples, asked.shots)
        lines = [sample_line(sample.student, sample.student.image) for sample in chosen]
        with atomic_folder(project / "data") as data:
            (data / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        where = Conversion("jsonl", image_dir=chosen[0].student.root.absolute() if chosen else None)
        init_project(
            project, tiny=False, model=str(asked.model), data=project / "data" / "train.jsonl", how=where
        )
    if not final.is_dir():
        config = load_config(config_file, list(asked.overrides))
        train(config, resume=any(Path(config.train.output_dir).glob("checkpoint-*")))
    return final


def _read(part: Part) -> Conversion:
    source = "coco" if part.split is None else "refcoco"
    return Conversion(source, image_dir=part.images, skip_bad=True, split=part.split)


def _table(columns: Sequence[str], records: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for name, record in records.items():
        for run in record["runs"]:
            metrics = run["metrics"] | {"F1@mIoU": run["f1_over_ious"]}
            own = {key: metrics.get(key) for key in columns}
            rows.append({"set": name, "source": run["source"], "images": record["images"], **own})
    means = []
    for source in dict.fromkeys(row["source"] for row in rows):
        of_source = [row for row in rows if row["source"] == source]
        known = {key: [row[key] for row in of_source if row[key] is not None] for key in columns}
        means.append({"source": source, **{key: fmean(own) if own else None for key, own in known.items()}})
    left_out = {name: len(record["left_out"]) for name, record in records.items() if record["left_out"]}
    return {"columns": columns, "sets": rows, "means": means, "left_out": left_out}
