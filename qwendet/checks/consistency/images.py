"""``consistency.images.*``: the model sees the picture that people see.

Held against a second computation with Pillow and numpy (:mod:`qwendet.checks.reference`), on the first
samples and on a picture drawn so that nothing about it is symmetric
(:mod:`qwendet.checks.consistency.synthetic`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from qwendet.checks.consistency.pair import pair
from qwendet.checks.consistency.synthetic import HEIGHT, WIDTH, synthetic_sample
from qwendet.checks.reference import ImageFacts, displayed_pixels, model_size, patch_values
from qwendet.checks.result import Verdict
from qwendet.checks.subject import Subject, once
from qwendet.data.samples import Sample, Turn
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.families.family import Family
from qwendet.loader import Bundle

PIXEL_TOLERANCE = 1e-5
"""Of normalised pixels: float32 rounds values below 4 to 2e-7, a step of one 8-bit level is 1e-2."""
PROCESSOR_FIX = "take image processor and pixel limits from the checkpoint, in training and at inference"
STEPS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
BICUBIC = 3
"""Pillow's number, which preprocessor_config.json writes."""
STANDARD = dict.fromkeys(STEPS, True) | {"rescale_factor": 1 / 255, "resample": BICUBIC}


def facts_of(bundle: Bundle) -> ImageFacts:
    """How images are made: limits of the resolved config, sizes of the model, published colour statistics."""
    data, vision = bundle.config.data, bundle.detector.config.vision_config
    assert data.min_pixels is not None  # the loader records both
    assert data.max_pixels is not None
    sizes = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    family = bundle.detector.family
    return ImageFacts(data.min_pixels, data.max_pixels, *sizes, family.image_mean, family.image_std)


def published_family(bundle: Bundle) -> Family:
    """The family of the model's own config, with answers in the frame that ``data.frame`` names."""
    return bundle.detector.family.in_frame(bundle.config.data.frame)


@once
def looked_at(subject: Subject) -> list[tuple[Sample, EncodedSample]]:
    """The first samples, and a drawn one, as training encodes them."""
    trained = pair(subject).trained
    frame = published_family(trained).answer_size(model_size(WIDTH, HEIGHT, facts_of(trained)))
    drawn = synthetic_sample(subject.folder / "drawn", trained.request_labels, frame)
    encoded = [*subject.encoded, trained.encoder().encode(drawn, with_answer=True)]
    return list(zip([*subject.samples, drawn], encoded, strict=True))


def processor(subject: Subject) -> Verdict:
    """Pixel limits, patch sizes and colour statistics are the same in both builds, and the model's own."""
    both, problems = pair(subject), list[Problem]()
    facts = facts_of(both.trained)
    wanted = STANDARD | asdict(facts)
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        found = settings_of(bundle.processor.image_processor)
        problems += processor_problems(found, wanted, f"{name} image processor", PROCESSOR_FIX)
    seen = f"{facts.min_pixels} to {facts.max_pixels} pixels, patches of {facts.patch_size}"
    return Verdict(f"both image processors agree with the model: {seen}", tuple(problems))


def settings_of(image_processor: Any) -> dict[str, Any]:
    """What decides which pixels an image processor makes."""
    names = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", *STANDARD)
    limits = {name: image_processor.size[edge] for name, edge in LIMITS.items()}
    return limits | {name: getattr(image_processor, name) for name in names}


LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


def processor_problems(
    found: Mapping[str, Any], wanted: Mapping[str, Any], where: str, fix: str
) -> Iterator[Problem]:
    """Settings of an image processor that are not the model's."""
    for name, value in wanted.items():
        own = found.get(name)
        if own is None or not np.allclose(own, value, rtol=1e-9):
            note = " (bicubic)" if name == "resample" else ""
            yield Problem(f"{name} is {own}, expected {value}{note}", where, fix)


def pixels(subject: Subject) -> Verdict:
    """Patches are the displayed picture's, red first, resized and normalised as published, token by token."""
    facts, compared = facts_of(pair(subject).trained), 0
    problems: list[Problem] = []
    for sample, item in looked_at(subject):
        turns = (*sample.teachers, sample.student)
        pictures = [displayed_pixels(turn.root / turn.image) for turn in turns]
        expected = [None if picture is None else patch_values(picture, facts) for picture in pictures]
        compared += sum(picture is not None for picture in pictures)
        problems += _pixel_problems(item, expected, turns, sample.where)
    return Verdict(f"{compared} pictures equal a second computation with Pillow and numpy", tuple(problems))


def _pixel_problems(
    item: EncodedSample, expected: Sequence[Any], turns: Sequence[Turn], where: str
) -> Iterator[Problem]:
    if len(item.image_grid_thw) != len(turns):
        yield Problem(f"{len(item.image_grid_thw)} images for {len(turns)} turns", where, PROCESSOR_FIX)
        return
    counts = item.image_grid_thw.prod(dim=1).tolist()
    for own, grid, wanted, turn in zip(
        item.pixel_values.split(counts), item.image_grid_thw.tolist(), expected, turns, strict=True
    ):
        if wanted is None:
            continue
        values, (rows, columns) = wanted
        place = f"{where}, {turn.image}"
        if grid != [1, rows, columns]:
            what = f"frames, rows and columns of patches are {grid}, expected {[1, rows, columns]}"
            yield Problem(what, place, PROCESSOR_FIX)
            continue
        gap = np.abs(own.double().numpy() - values)
        if not gap.max() <= PIXEL_TOLERANCE:
            patch, _ = np.unravel_index(gap.argmax(), gap.shape)
            share = (gap > PIXEL_TOLERANCE).mean()
            what = f"{share:.0%} of the pixel values differ, at most by {gap.max():.3g}"
            yield Problem(f"{what} (tolerance {PIXEL_TOLERANCE:g})", f"{place}, patch {patch}", PROCESSOR_FIX)
