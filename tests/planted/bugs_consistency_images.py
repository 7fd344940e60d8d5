"""Bugs that ``consistency.images.*`` and ``test.images.*`` are for: pixels, and the frames of boxes."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from PIL import Image

from qwendet import loader
from qwendet.config.augment_steps import AugmentStep
from qwendet.config.schema import DataConfig
from qwendet.data import images
from qwendet.data.augment import Augmenter, scene_of
from qwendet.data.samples import Sample
from qwendet.encoding import encode, prompts
from qwendet.encoding.encode import EncodedSample, Encoder
from qwendet.inference import predictor as inference
from qwendet.inference import text_answers
from qwendet.loader import Bundle
from tests.planted.bug import Bug
from tests.planted.in_code import Plant, at_inference, changing, replacing


def half_the_pixels(bundle: Bundle) -> None:
    processor = bundle.processor.image_processor
    processor.size = type(processor.size)(
        shortest_edge=processor.size["shortest_edge"], longest_edge=processor.size["longest_edge"] // 2
    )


def other_means(bundle: Bundle) -> None:
    bundle.processor.image_processor.image_mean = [0.4, 0.5, 0.6]


def whole_images(bundle: Bundle) -> None:
    bundle.processor.image_processor.do_resize = False


def nearest(bundle: Bundle) -> None:
    bundle.processor.image_processor.resample = 0


def swapped_scale(boxes: Any, source: tuple[float, float], target: tuple[float, float]) -> Any:
    return SOUND_RESCALE(boxes, source, target)[:, [1, 0, 3, 2]]


SOUND_RESCALE = prompts.rescale_xyxy


SOUND_CORNERS = inference.cxcywh_to_xyxy


def in_processor(**settings: Any) -> Plant:
    """Other settings of the image processor, in training and at inference alike."""

    def change(processor: Any) -> Any:
        for name, value in settings.items():
            setattr(processor.image_processor, name, value)
        return processor

    return changing(loader, "load_processor", change)


def transposed_blocks(item: EncodedSample) -> EncodedSample:
    """Down before right in the two by two patches of a token."""
    blocks = item.pixel_values.unflatten(0, (-1, 2, 2)).transpose(1, 2)
    return replace(item, pixel_values=blocks.flatten(0, 2))


class Augmenting(Encoder):
    """Flips every image that it encodes."""

    def encode(self, sample: Sample, *, with_answer: bool, **others: Any) -> EncodedSample:
        step = AugmentStep(name="horizontal_flip", probability=1.0)
        turn = Augmenter(DataConfig(augment=(step,))).turn(sample.student, "", Random(0), scene_of)  # type: ignore[arg-type]
        return super().encode(replace(sample, student=turn), with_answer=with_answer, **others)


class AugmentingBundle(Bundle):
    def encoder(self) -> Encoder:
        return Augmenting(self.processor, self.labels, self.config.data)


IMAGE_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "max_pixels differs at inference",
        "consistency.images.processor",
        ("max_pixels", "inference"),
        at_inference(half_the_pixels),
    ),
    Bug(
        "other colour statistics at inference",
        "consistency.images.processor",
        ("image_mean", "inference"),
        at_inference(other_means),
    ),
    Bug(
        "channels in another order",
        "test.images.pixels",
        ("of the pixel values differ",),
        changing(encode, "open_image", lambda image: Image.merge("RGB", image.split()[::-1])),
    ),
    Bug(
        "patches of a token transposed",
        "test.images.pixels",
        ("of the pixel values differ",),
        changing(Encoder, "encode", transposed_blocks),
    ),
    Bug(
        "resized by another filter",
        "test.images.pixels",
        ("of the pixel values differ",),
        in_processor(resample=2),
    ),
    Bug(
        "means and deviations swapped",
        "consistency.images.processor",
        ("image_mean", "training"),
        in_processor(
            image_mean=[0.26862954, 0.26130258, 0.27577711], image_std=[0.48145466, 0.4578275, 0.40821073]
        ),
    ),
    Bug(
        "images are not resized at inference",
        "consistency.images.processor",
        ("do_resize is False, expected True",),
        at_inference(whole_images),
    ),
    Bug(
        "EXIF orientation ignored",
        "test.images.pixels",
        ("leaves turned.jpg",),
        replacing(images.ImageOps, "exif_transpose", lambda image, in_place: None),
    ),
    Bug(
        "resized without smoothing at inference",
        "test.images.same",
        ("pixel_values",),
        at_inference(nearest),
    ),
    Bug(
        "augmentation at inference",
        "test.images.same",
        ("pixel_values",),
        at_inference(lambda bundle: AugmentingBundle(**vars(bundle))),
    ),
    Bug(
        "x and y swapped in the answer",
        "test.images.answers",
        ("the answer is",),
        replacing(prompts, "rescale_xyxy", swapped_scale),
    ),
    Bug(
        "crowds are learned",
        "test.images.targets",
        ("not the student's",),
        replacing(encode, "trainable_objects", lambda turn: list(turn.objects)),
    ),
    Bug(
        "xyxy as cxcywh",
        "test.images.targets",
        ("not the student's",),
        replacing(encode, "xyxy_to_cxcywh", lambda boxes: boxes),
    ),
    Bug(
        "resize recomputed at inference",
        "test.images.text_boxes",
        ("turned.jpg",),
        replacing(text_answers, "answer_size", lambda interface, item: item.image_size),
    ),
    Bug(
        "x and y swapped at inference",
        "test.images.head_boxes",
        ("comes back as", "pixels off"),
        replacing(inference, "cxcywh_to_xyxy", lambda boxes: SOUND_CORNERS(boxes[..., [1, 0, 3, 2]])),
    ),
]
