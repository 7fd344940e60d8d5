"""A sample that no mistake leaves as it is: sides differ, colours differ, its file is stored turned.

Its boxes are laid out in the frame of answers, on whole units, so that writing them as text loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwendet.checks.consistency.pair import pair
from qwendet.checks.served.pictures import HEIGHT, TURNED, WIDTH, write_turned
from qwendet.checks.subject import Subject, once
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.encoding.encode import EncodedSample
from qwendet.families.family import Family
from qwendet.loader import Bundle
from tests.invariants.reference import ImageFacts, model_size

BOXES = ((0.05, 0.10, 0.50, 0.55), (0.30, 0.45, 0.95, 0.90), (0.60, 0.05, 0.90, 0.40))
"""In the unit square, sorted neither by top nor by left; no two edges alike."""


def facts_of(bundle: Bundle) -> ImageFacts:
    """How images are made: limits of the resolved config, sizes of the model, published colour statistics."""
    data, vision = bundle.config.data, bundle.detector.config.vision_config
    assert data.min_pixels is not None  # the loader records both
    assert data.max_pixels is not None
    sizes = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    family = bundle.detector.family
    return ImageFacts(data.min_pixels, data.max_pixels, *sizes, family.image_mean, family.image_std)


def answering_family(bundle: Bundle) -> Family:
    """The family of the model, with answers in the frame that ``data.frame`` names."""
    return bundle.detector.family.in_frame(bundle.config.data.frame)


@once
def looked_at(subject: Subject) -> list[tuple[Sample, EncodedSample]]:
    """The first samples, and a drawn one, as training encodes them."""
    trained = pair(subject).trained
    frame = answering_family(trained).answer_size(model_size(WIDTH, HEIGHT, facts_of(trained)))
    drawn = synthetic_sample(subject.folder / "drawn", trained.request_labels, frame)
    encoded = [*subject.encoded, trained.encoder().encode(drawn, with_answer=True)]
    return list(zip([*subject.samples, drawn], encoded, strict=True))


def synthetic_sample(folder: Path, labels: Sequence[str], frame: tuple[int, int]) -> Sample:
    """Write the picture and return it as a sample."""
    write_turned(folder)
    objects = tuple(
        DetectedObject(_whole_units(box, frame), labels[0 if index % 2 else -1])
        for index, box in enumerate(BOXES)
    )
    crowd = DetectedObject((1.0, 1.0, WIDTH / 2, HEIGHT / 2), labels[0], crowd=True)  # nobody's target
    turn = Turn(TURNED, (*objects, crowd), labels=tuple(labels), root=folder)
    return Sample(turn, where=f"{TURNED} (drawn for this check)")


def _whole_units(box: Sequence[float], frame: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box in pixels of the displayed image, its edges whole units of the frame."""
    wide, high = frame
    x1, x2 = (round(number * wide) * WIDTH / wide for number in box[0::2])
    y1, y2 = (round(number * high) * HEIGHT / high for number in box[1::2])
    return x1, y1, x2, y2
