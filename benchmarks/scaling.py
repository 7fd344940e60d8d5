"""How time and memory grow with the work: samples, boxes an image, images a sample, tokens.

    python -m benchmarks.scaling [--samples 100000]

Each step is run at growing sizes; the exponent is the slope of log time over log size, so 1 is
proportional, and attention alone may exceed it. Time is the process' own on one core: by the clock on the
wall, other processes' work made 1.08 of an exponent of 1.00. Memory of reading samples is the process'
most, after the largest file, over that after the smallest; so it is of Parquet, of 1,000 to 1,000,000 samples
without images, each row group of which is read. Images are read at random, decoded, from files that a JSONL
names, from Parquet and from tars as `data convert` writes them; images a second. Memory of predicting
is that of `infer` over folders of small images, a process each, with boxes that are made up, not a forward's.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet

from benchmarks.report import parser, report
from qwendet.answers.format import format_answer, parse_answer
from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.images import open_image
from qwendet.data.samples import DetectedObject, Sample, SampleFile, SampleSource
from qwendet.data.sources import samples_of
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.encode import Encoder
from qwendet.infer import infer
from qwendet.inference.batches import Keep, Plan
from qwendet.inference.detections import Detection, Prediction
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle, load
from qwendet.model.losses import LossManager, step_counts
from qwendet.model.matching import Targets

ROUNDS = 3


def make_bundle(scenes: Path) -> Bundle:
    """The tiny model in training mode."""
    config: Config = build_config(
        {
            "model": {"path": "tiny", "device": "cpu", "dtype": "float32"},
            "data": {"train": str(scenes), "labels": list(DEMO.labels), "max_tokens": 20_000},
        },
        "benchmark",
    )
    return load(config, for_inference=False)


def best_time(work: Callable[[], object]) -> float:
    """Median seconds of processor time of a few runs, after one that warms up."""
    work()
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def samples_file(folder: Path, count: int, record: dict[str, object]) -> Path:
    """A file of one sample many times, each line its own."""
    path = folder / f"{count}.jsonl"
    line = json.dumps(record) + "\n"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(line for _ in range(count))
    return path


def parquet_file(folder: Path, count: int, record: dict[str, Any]) -> Path:
    """A Parquet file of one sample many times, without its image."""
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    some = 1000
    columns = {"image": pyarrow.array([{"bytes": None, "path": "a.jpg"}] * some, image)}
    table = pyarrow.table(columns | {"objects": [record["objects"]] * some})
    path = folder / f"{count}.parquet"
    with parquet.ParquetWriter(path, table.schema) as writer:
        for _ in range(count // some):
            writer.write_table(table)
    return path


def read_spread(path: Path) -> float:
    """Lengths of all samples, and up to 20,000 of them evenly spread; the most held by then, in MB."""
    samples = samples_of(path)
    assert len(samples.line_bytes()) == len(samples)
    for index in range(0, len(samples), max(1, len(samples) // 20_000)):
        assert samples[index].student.objects
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def images_a_second(folder: Path, count: int = 400) -> dict[str, float]:
    """Photographs of 640×480, JPEG of 60 kB, read at random."""
    generator = np.random.default_rng(0)
    lines = []
    (folder / "files").mkdir(parents=True)
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (120, 160, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(
            folder / "files" / f"{number}.jpg", quality=90
        )
        objects = [{"bbox_2d": [5, 5, 100, 100], "desc": "cat"}]
        lines.append(json.dumps({"images": [f"{number}.jpg"], "objects": objects}) + "\n")
    (folder / "files" / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    sources = {"files": folder / "files" / "train.jsonl"}
    for target in ("parquet", "webdataset"):
        convert_dataset(sources["files"], folder / target, Conversion(target=target))
        sources[target] = folder / target
    order = generator.permutation(count).tolist()
    found = {}
    for name, path in sources.items():
        samples = samples_of(path)

        def read(samples: SampleSource = samples) -> None:
            for index in order:
                turn = samples[index].student
                open_image(turn.image, turn.root, "")

        found[f"images_a_second_{name}"] = count / best_time(read)
    return found


def read_all(path: Path) -> float:
    """Read every sample; returns the most that this process has held by then, in MB."""
    for sample in SampleFile(path):
        assert sample.student.image
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def predict_all(predictor: Predictor, images: int) -> float:
    """``infer`` over a folder of so many images; returns the most that its process has held, in MB."""
    detections = tuple(Detection((1.0, 2.0, 30.5, 40.25), "red circle", 0.5, "head") for _ in range(20))

    def predict(plan: Plan, batches: Iterable[int], keep: Keep, **_: object) -> None:
        for batch in batches:
            names = {index: plan.samples[index].student.image for index in plan.batch(batch)}
            keep(batch, {at: Prediction(name, 64, 64, detections, 0) for at, name in names.items()})

    with (
        tempfile.TemporaryDirectory(prefix="qwendet-scaling-") as name,
        ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool,
    ):
        folder = Path(name)
        Image.new("RGB", (64, 64)).save(folder / "image.png")
        (folder / "images").mkdir()
        for number in range(images):
            (folder / "images" / f"{number}.png").symlink_to(folder / "image.png")
        predictor.predict_batches = predict  # type: ignore[method-assign]
        with patch("qwendet.infer.predictor_of", lambda *_, **__: predictor):
            return pool.submit(_infer, folder).result()


def _infer(folder: Path) -> float:
    torch.set_num_threads(1)
    infer(Path("tiny"), [folder / "images"], output=folder / "found.jsonl")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def with_boxes(sample: Sample, count: int) -> Sample:
    """The sample with this many boxes, all of the same label."""
    objects = tuple(
        DetectedObject((x, y, x + 8, y + 8), DEMO.labels[0])
        for x, y in ((5 + 4 * (number % 20), 5 + 4 * (number // 20 % 20)) for number in range(count))
    )
    return replace(sample, student=replace(sample.student, objects=objects))


def train_step(bundle: Bundle, samples: Sequence[Sample]) -> None:
    """Encode, forward, loss and backward of a batch."""
    encoder: Encoder = bundle.encoder()
    batch = bundle.collator()([encoder.encode(sample, with_answer=True) for sample in samples])
    output = bundle.detector(batch)
    targets = Targets(batch["target_boxes_cxcywh"], batch["target_label_ids"], batch["num_boxes"])
    settings = bundle.config
    manager = LossManager(settings.loss, settings.detection.one_to_many)
    manager(output.tokens, output.head, targets, step_counts([batch])).total.backward()
    bundle.detector.zero_grad()


def main() -> None:
    """Measure all."""
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=100_000, help="largest sample file and folder")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float | int | str] = {}
    with tempfile.TemporaryDirectory(prefix="qwendet-scaling-") as name:
        folder = Path(name)
        scenes = write_dataset(DEMO, folder / "train.jsonl", 9, seed=1)
        record = json.loads(scenes.read_text(encoding="utf-8").splitlines()[0])
        counts = [options.samples // 100, options.samples // 10, options.samples]
        files = [samples_file(folder, count, record) for count in counts]
        held = [read_all(file) for file in files]
        predictor = Predictor.from_checkpoint("tiny", overrides=["model.device=cpu"])
        predicted = [predict_all(predictor, count) for count in counts]
        figures["memory_growth_of_predicting_mb"] = predicted[-1] - predicted[0]
        figures["memory_ratio_of_predicting"] = predicted[-1] / predicted[0]
        figures["memory_growth_of_reading_mb"] = held[-1] - held[0]
        figures["memory_ratio_of_reading"] = held[-1] / held[0]
        tables = [parquet_file(folder, count, record) for count in (1_000, options.samples * 10)]
        spread = [read_spread(table) for table in tables]
        figures["memory_ratio_of_reading_parquet"] = spread[-1] / spread[0]
        figures |= images_a_second(folder / "images")
        figures["samples_exponent"] = exponent(counts, [best_time(lambda f=f: read_all(f)) for f in files])  # type: ignore[misc]
        bundle = make_bundle(scenes)
        first = SampleFile(scenes)[0]
        figures |= boxes(bundle, first)
        figures |= images(bundle, list(SampleFile(scenes)))
    report(figures, options.json)


def boxes(bundle: Bundle, sample: Sample) -> dict[str, float]:
    """Boxes an image, 1 to 300: a training step, and reading the answer back."""
    counts = (1, 10, 100, 300)
    steps = [best_time(lambda n=n: train_step(bundle, [with_boxes(sample, n)])) for n in counts]  # type: ignore[misc]
    texts = [format_answer(with_boxes(sample, number).student.objects) for number in counts]
    parsing = [best_time(lambda text=text: parse_answer(text)) for text in texts]  # type: ignore[misc]
    return {
        "boxes_train_step_exponent": exponent(counts, steps),
        "boxes_train_step_300_seconds": steps[-1],
        "boxes_parse_exponent": exponent(counts[1:], parsing[1:]),
    }


def images(bundle: Bundle, samples: list[Sample]) -> dict[str, float]:
    """Images a sample, 1 to 8: a training step with demonstrations, over images and over tokens."""
    counts = (1, 2, 4, 8)
    encoder = bundle.encoder()
    asked = [
        replace(samples[0], teachers=tuple(item.student for item in samples[1:number])) for number in counts
    ]
    tokens = [len(encoder.encode(sample, with_answer=True).input_ids) for sample in asked]
    steps = [best_time(lambda s=s: train_step(bundle, [s])) for s in asked]  # type: ignore[misc]
    return {
        "images_train_step_exponent": exponent(counts, steps),
        "tokens_train_step_exponent": exponent(tokens, steps),
        "tokens_of_8_images": tokens[-1],
        "images_8_train_step_seconds": steps[-1],
    }


if __name__ == "__main__":
    main()
