"""The demo: a tiny model learns classes, colours and backgrounds that it never saw.

    python -m benchmarks.demo --family qwen2_5_vl --output runs/demo      (or: make demo FAMILY=qwen2_5_vl)

Predicts 200 held-out images with the shipped weights, fine-tunes on generated scenes, predicts them
again, and prints COCO metrics of head and text before and after. Leaves ground truth and predictions
in COCO's form under ``OUTPUT/eval`` and pictures under ``OUTPUT/pictures``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from qwendet.config.load import load_config
from qwendet.config.schema import EMBEDDED_MODELS
from qwendet.console.console import print_table, progress, setup
from qwendet.data.samples import Sample, SampleFile
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.demo.tiny import SHIPPED
from qwendet.evaluation import coco_ground_truth, coco_metrics, coco_results
from qwendet.inference.detections import Prediction
from qwendet.inference.predictor import Predictor
from qwendet.loader import load
from qwendet.progress import shown_by, track
from qwendet.train import train
from qwendet.visualization.pictures import save_pictures

TRAINING_SCENES = 6400
HELD_OUT_SCENES = 200
PICTURES = 12

MODELS = {EMBEDDED_MODELS[name]: name for name in SHIPPED}
CONFIG = """\
model:
  path: {path}
data:
  train: data/train.jsonl
  max_tokens: 2048
loss:
  lm_loss_weight: 4.0
train:
  output_dir: run
  max_steps: 750
  batch_size: 16
  learning_rate: 1.0e-3
  head_learning_rate: 1.0e-3
  weight_decay: 0.05
  save_steps: 250
infer:
  batch_size: 20
  max_new_tokens: 400
"""


def main() -> None:
    """Predict, train, predict, score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=[*MODELS], default="qwen2_5_vl")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--train-scenes", type=int, default=TRAINING_SCENES)
    parser.add_argument("--test-scenes", type=int, default=HELD_OUT_SCENES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    setup(debug=False, quiet=False)
    started = time.monotonic()
    folder = options.output
    data = folder / "data"
    write_dataset(DEMO, data / "train.jsonl", options.train_scenes, seed=11)
    write_dataset(DEMO, data / "test.jsonl", options.test_scenes, seed=12)
    (folder / "config.yaml").write_text(CONFIG.format(path=MODELS[options.family]), encoding="utf-8")
    config = load_config(folder / "config.yaml", options.overrides)
    samples = list(SampleFile(data / "test.jsonl"))

    untrained = config.model_copy(update={"data": config.data.model_copy(update={"labels": DEMO.labels})})
    before, _, _ = score(Predictor(load(untrained, for_inference=True)), samples, "before")
    trained_at = time.monotonic()
    summary = train(config)
    training_seconds = time.monotonic() - trained_at
    if summary.final is None:
        raise SystemExit(f"stopped by {summary.stopped_by}: nothing is evaluated")
    predictor = Predictor.from_checkpoint(summary.final)
    after, truth, predictions = score(predictor, samples, "after")

    write_coco(folder / "eval", truth, coco_results(samples, predictions, predictor.bundle.labels, "head"))
    head_only = [keep_source(prediction, "head") for prediction in predictions]
    save_pictures(samples[:PICTURES], head_only[:PICTURES], folder / "pictures", threshold=0.3)
    rows = [
        [name, f"{before[name]:.3f}", f"{after[name]:.3f}"]
        for name in ("head/AP", "head/AP50", "head/AP75", "text/AP50", "text/parse_rate")
    ]
    print_table(f"{options.test_scenes} held-out images", ["metric", "before", "after"], rows)
    seconds = time.monotonic() - started
    print(f"training {training_seconds:.0f} s, all {seconds:.0f} s; pictures in {folder / 'pictures'}")
    if options.json:
        figures = {f"before/{name}": value for name, value in before.items()}
        figures |= {f"after/{name}": value for name, value in after.items()}
        figures |= {"training_seconds": training_seconds, "seconds": seconds}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def score(
    predictor: Predictor, samples: list[Sample], name: str
) -> tuple[dict[str, float], dict[str, object], list[Prediction]]:
    """Predict by head and text; COCO metrics of both, ground truth, predictions."""
    predictions: list[Prediction] = []
    with track(f"predicting {name}", len(samples)) as advance:
        for prediction in predictor.predict(samples, "both"):
            predictions.append(prediction)
            advance(len(predictions), "")
    labels = predictor.bundle.labels
    truth = coco_ground_truth(samples, predictions, labels)
    metrics: dict[str, float] = {}
    for source in ("head", "text"):
        found = coco_metrics(truth, coco_results(samples, predictions, labels, source))
        metrics |= {f"{source}/{key}": value for key, value in found.items()}
    metrics["text/parse_rate"] = parse_rate(predictions)
    return metrics, truth, predictions


def parse_rate(predictions: list[Prediction]) -> float:
    """Share of answers that ended by themselves and in which no box was rejected."""
    answers = [(prediction.answer, prediction.rejected) for prediction in predictions]
    whole = [
        facts is not None and not (facts.truncated or facts.unreadable or rejected)
        for facts, rejected in answers
    ]
    return sum(whole) / len(whole)


def keep_source(prediction: Prediction, source: str) -> Prediction:
    """A prediction with the detections of one source."""
    return replace(
        prediction, detections=tuple(item for item in prediction.detections if item.source == source)
    )


def write_coco(folder: Path, truth: dict[str, object], results: list[dict[str, object]]) -> None:
    """Write what pycocotools needs to score the head."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ground_truth.coco.json").write_text(json.dumps(truth), encoding="utf-8")
    (folder / "predictions.coco.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    with shown_by(progress):
        main()
