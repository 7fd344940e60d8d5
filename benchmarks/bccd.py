"""Real photographs: BCCD (364 blood smears, Pascal VOC) by the tiny model, head AP50 on the test split.

    python -m benchmarks.bccd ../shared/data/bccd/BCCD --output runs/bccd

Does what a user would: ``qwendet init DIR --model tiny --data BCCD``, ``qwendet train``, ``qwendet infer``
on the test split; then scores with pycocotools, keeping only the three classes' boxes that VOC marks.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import parser, report
from qwendet.data.samples import SampleFile
from qwendet.evaluation import coco_ground_truth, coco_metrics, coco_results
from qwendet.inference.detections import Detection, Prediction
from qwendet.loading.manifest import read_manifest


def run(*arguments: str) -> float:
    """Run a qwendet command; its seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "qwendet", *arguments], check=True)
    return time.perf_counter() - started


def read_predictions(path: Path) -> list[Prediction]:
    """Read what ``qwendet infer --output`` wrote."""
    predictions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        detections = tuple(
            Detection(**(item | {"bbox_2d": tuple(item["bbox_2d"])})) for item in record["detections"]
        )
        predictions.append(Prediction(**(record | {"detections": detections})))
    return predictions


def main() -> None:
    """Init, train, infer, score."""
    arguments = parser(__doc__)
    arguments.add_argument("data", type=Path, help="the folder with Annotations and JPEGImages")
    arguments.add_argument("--output", type=Path, default=Path("runs/bccd"))
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = arguments.parse_args()
    folder: Path = options.output
    shutil.rmtree(folder, ignore_errors=True)
    run("init", str(folder), "--model", "tiny", "--data", str(options.data))
    overrides = [f"train.max_steps={options.steps}", *options.overrides]
    settings = [word for override in overrides for word in ("--set", override)]
    training = run("train", str(folder / "config.yaml"), *settings)
    test, output = folder / "data" / "test.jsonl", folder / "test.predictions.jsonl"
    infer = run(
        "infer", str(folder / "run" / "final"), str(test), "--output", str(output),
        "--visualize", str(folder / "pictures"),
    )  # fmt: skip
    labels = read_manifest(folder / "run" / "final").config.data.labels or ()
    samples, predictions = list(SampleFile(test)), read_predictions(output)
    truth = coco_ground_truth(samples, predictions, labels)
    metrics = coco_metrics(truth, coco_results(samples, predictions, labels, "head"))
    report(
        {f"test_{name}": value for name, value in metrics.items()}
        | {"training_seconds": training, "infer_seconds": infer, "steps": options.steps},
        options.json,
    )


if __name__ == "__main__":
    main()
