"""``consistency.images.processor``: images are made as those that the base model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qwendet.checks.consistency.pair import pair
from qwendet.checks.result import Verdict
from qwendet.checks.subject import Subject
from qwendet.errors import Problem
from qwendet.loader import Bundle

PROCESSOR_FIX = "take image processor and pixel limits from the checkpoint, in training and at inference"
STEPS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
BICUBIC = 3
"""Pillow's number, which preprocessor_config.json writes."""
STANDARD = dict.fromkeys(STEPS, True) | {"rescale_factor": 1 / 255, "resample": BICUBIC}
LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


def processor(subject: Subject) -> Verdict:
    """Pixel limits, patch sizes and colour statistics are the same in both builds, and the model's own."""
    both, problems = pair(subject), list[Problem]()
    wanted = _published(both.trained)
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        found = settings_of(bundle.processor.image_processor)
        problems += processor_problems(found, wanted, f"{name} image processor", PROCESSOR_FIX)
    seen = "{min_pixels} to {max_pixels} pixels, patches of {patch_size}".format_map(wanted)
    return Verdict(f"both image processors agree with the model: {seen}", tuple(problems))


def _published(bundle: Bundle) -> dict[str, Any]:
    """Limits of the resolved config, sizes of the model, published colour statistics."""
    data, vision, family = bundle.config.data, bundle.detector.config.vision_config, bundle.detector.family
    return STANDARD | {
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": family.image_mean,
        "image_std": family.image_std,
    }


def settings_of(image_processor: Any) -> dict[str, Any]:
    """What decides which pixels an image processor makes."""
    names = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", *STANDARD)
    limits = {name: image_processor.size[edge] for name, edge in LIMITS.items()}
    return limits | {name: getattr(image_processor, name) for name in names}


def processor_problems(
    found: Mapping[str, Any], wanted: Mapping[str, Any], where: str, fix: str
) -> Iterator[Problem]:
    """Settings of an image processor that are not the model's."""
    for name, value in wanted.items():
        own = found.get(name)
        if own is None or not np.allclose(own, value, rtol=1e-9):
            note = " (bicubic)" if name == "resample" else ""
            yield Problem(f"{name} is {own}, expected {value}{note}", where, fix)
