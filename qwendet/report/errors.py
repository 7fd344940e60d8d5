"""What kind of error each missed object and each false detection is, image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from qwendet.boxes import pairwise_iou
from qwendet.evaluation.matches import IOU_THRESHOLD
from qwendet.evaluation.scores import Run

Kind = Literal["missed", "wrong label", "loose box", "double", "false alarm"]
KINDS: Mapping[Kind, str] = {
    "missed": "an object that no detection of its label found",
    "wrong label": "a detection on an object of another label",
    "loose box": "a detection near an object of its label, at IoU below 0.5",
    "double": "a second detection of an object that was found already",
    "false alarm": "a detection where nothing is",
}
NEAR = 0.1
"""IoU from which on a detection is about an object, however badly it fits (Bolya et al. 2020, TIDE)."""


@dataclass(frozen=True)
class Drawn:
    """A box of a picture.

    Attributes:
        box_xywh: pixels of the image.
        category: COCO category.
        score: of a detection; ``None`` for an object.
        kind: what is wrong with it; ``None`` for a right detection, an object that was found or is ignored.
        about: category of the object that a detection with a wrong label is on, else ``None``.
    """

    box_xywh: tuple[float, float, float, float]
    category: int
    score: float | None
    kind: Kind | None
    about: int | None = None


@dataclass
class ImageErrors:
    """What a run did on one image.

    Attributes:
        objects: the image's objects, those that count first.
        detections: with at least the run's threshold, best first.
    """

    objects: list[Drawn] = field(default_factory=list)
    detections: list[Drawn] = field(default_factory=list)

    def severity(self) -> float:
        """How bad it is: a missed object counts 1, a false detection its score."""
        wrong = [box for box in (*self.objects, *self.detections) if box.kind is not None]
        return sum(1.0 if box.score is None else box.score for box in wrong)


def errors_of(run: Run, ground_truth: Mapping[str, Any]) -> list[ImageErrors]:
    """Tell what is wrong on each image, with the detections of at least the run's best threshold."""
    images = [ImageErrors() for _ in ground_truth["images"]]
    truth: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in sorted(ground_truth["annotations"], key=lambda item: bool(item["ignore"])):
        truth[item["image_id"]].append(item)
    threshold = run.at_best.threshold or 0.0
    matches = run.matches
    found = set(matches.found[matches.is_true & (matches.score >= threshold)].tolist())
    for image, items in truth.items():
        for item in items:
            is_missed = item["id"] not in found and not item["ignore"]
            kind: Kind | None = "missed" if is_missed else None
            images[image].objects.append(Drawn(tuple(item["bbox"]), item["category_id"], None, kind))
    wrong: dict[int, list[int]] = defaultdict(list)
    for row in (matches.score >= threshold).nonzero()[0]:
        result = run.results[matches.detection[row]]
        if matches.is_false[row]:
            wrong[result["image_id"]].append(len(images[result["image_id"]].detections))
        images[result["image_id"]].detections.append(
            Drawn(tuple(result["bbox"]), result["category_id"], result["score"], None)
        )
    for image, places in wrong.items():
        _name_errors(images[image].detections, places, truth[image])
    return images


def _name_errors(detections: list[Drawn], places: Sequence[int], truth: Sequence[Mapping[str, Any]]) -> None:
    """Give each false detection of an image its kind."""
    overlaps = pairwise_iou(
        _xyxy([detections[place].box_xywh for place in places]), _xyxy([item["bbox"] for item in truth])
    )
    for place, row in zip(places, overlaps.tolist(), strict=True):
        own = detections[place].category
        found = [(iou, item["category_id"]) for iou, item in zip(row, truth, strict=True)]
        same = max((iou for iou, category in found if category == own), default=0.0)
        other, about = max((one for one in found if one[1] != own), default=(0.0, None))
        kind: Kind = "false alarm"
        if same >= IOU_THRESHOLD:
            kind = "double"
        elif other >= IOU_THRESHOLD:
            kind = "wrong label"
        elif same >= NEAR:
            kind = "loose box"
        about = about if kind == "wrong label" else None
        detections[place] = replace(detections[place], kind=kind, about=about)


def _xyxy(boxes_xywh: Sequence[Sequence[float]]) -> torch.Tensor:
    boxes = torch.tensor(boxes_xywh, dtype=torch.float64).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
