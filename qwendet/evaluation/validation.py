"""The validation samples, predicted by the model in memory: metrics, and the first images as pictures.

During training and at its end it is this that is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from qwendet.config.schema import Config
from qwendet.data.images import open_image
from qwendet.data.samples import Sample
from qwendet.encoding.dataset import open_samples, usable_samples
from qwendet.evaluation.coco import coco_ground_truth, coco_metrics, coco_results
from qwendet.inference.detections import Prediction, Source
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle
from qwendet.progress import track
from qwendet.visualization.pictures import draw_boxes, draw_detections, shrunk, side_by_side

PICTURES = 4
MOST_SIDE = 640  # pixels of a picture's image: it is kept for every evaluation


@dataclass(frozen=True)
class Validation:
    """What was found in the validation samples; metrics are named after their source: ``head/AP50``."""

    samples: Sequence[Sample]
    predictions: Sequence[Prediction]
    sources: Sequence[Source]
    metrics: dict[str, float]


def validate(
    bundle: Bundle,
    samples: Sequence[Sample],
    *,
    mode: str | None = None,
    alone: bool = False,
) -> Validation:
    """Predict samples, at least one, and measure the predictions; ``mode`` ``None`` is ``infer.mode``.

    All processes of the launcher share them and each has the whole result, unless one is ``alone``.
    """
    predictor = Predictor(bundle)
    with track("validating", len(samples)) as advance:
        predictions = predictor.predict_all(samples, mode, advance, alone=alone)
    sources = predictor.sources(mode)
    return Validation(samples, predictions, sources, _metrics(samples, predictions, sources, bundle.labels))


def _metrics(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    sources: Sequence[Source],
    labels: Sequence[str],
) -> dict[str, float]:
    truth = coco_ground_truth(samples, predictions, labels)
    metrics: dict[str, float] = {}
    for source in sources:
        scores = coco_metrics(truth, coco_results(samples, predictions, labels, source))
        metrics |= {f"{source}/{name}": value for name, value in scores.items()}
    return metrics


def validation_samples(config: Config) -> list[Sample]:
    """The validation samples; broken ones are left out only if ``data.on_bad_sample`` says so."""
    samples = open_samples(config, "val")
    if config.data.on_bad_sample == "error":
        return list(samples)
    usable, _ = usable_samples(samples, config.data.labels or ())
    return [samples[index] for index in usable]


def validation_pictures(validation: Validation, threshold: float) -> list[tuple[str, Image.Image]]:
    """The first images by name, each beside itself: ground truth, then detections from a score on."""
    first = zip(validation.samples[:PICTURES], validation.predictions, strict=False)
    return [
        (f"validation/image_{index}", _picture(sample, prediction, validation.sources, threshold))
        for index, (sample, prediction) in enumerate(first)
    ]


def _picture(
    sample: Sample, prediction: Prediction, sources: Sequence[Source], threshold: float
) -> Image.Image:
    turn = sample.student
    image, factor = shrunk(open_image(turn.image, turn.root, sample.where), MOST_SIDE)
    boxes = [[number * factor for number in item.bbox_2d] for item in turn.objects]
    panels = [("ground truth", draw_boxes(image, boxes, [item.desc for item in turn.objects]))]
    for source in sources:
        found = [item for item in prediction.detections if item.source == source]
        panels.append((source, draw_detections(image, found, threshold, factor)))
    return side_by_side(panels)
