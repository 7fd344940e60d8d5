"""From numbers to settings: each value with the words that tell where it comes from.

Every function takes plain numbers, so that each can be asked with numbers alone. The rules:

- ``data.max_pixels``: images are shrunk as long as 95 % of the boxes cover 4 image tokens (2 × 2 squares of
  the family's unit in the model's image), between the least and the most that the model is given.
- ``data.min_pixels``: images are enlarged until 95 % of the boxes cover half an image token,
  and half of them a whole one.
- ``data.max_tokens``: what 99.9 % of the samples need and a quarter more, at least the largest image.
- the length of training: a number of passes, raised for small sets to the steps that a new head needs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwendet.config.schema import DetectionConfig
from qwendet.families.family import PixelLimits

BOXES_SEEN = 0.95
"""Share of the boxes that the pixel limits are chosen for; the smallest ones may be mistakes."""
TOKENS_WANTED = 4
"""Image tokens that a box should cover before an image is shrunk."""
TOKENS_NEEDED = 0.5
"""Image tokens (of four patches) that a box should cover, if need be by enlarging the image."""
SAMPLES_FIT = 0.999
TOKENS_SPARE = 1.25
TOKENS_STEP = 128
"""``data.max_tokens`` is a multiple of it."""
SPARE_QUERIES = 1.5
MOST_LABELS_LISTED = 20
REQUEST_TOKENS = 1024
"""Tokens of a request's labels, nearly those of a large image; of more labels a request names some."""
ANY_OBJECT = "object"


@dataclass(frozen=True)
class Setting:
    """One line of the config.

    Attributes:
        value: what YAML holds.
        comment: where it comes from; empty shows the field's own description.
        notes: of each entry of a list; none writes the list on one line.
    """

    value: Any
    comment: str = ""
    notes: tuple[str, ...] = ()


Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class Recipe:
    """What suits a model, whatever the data.

    Attributes:
        least_tokens: images are not shrunk below so many image tokens.
        most_tokens: of an image, by what they cost.
        passes: over the training samples, at least.
        most_passes: … however few there are; None where steps are counted.
        least_steps: that a new head needs.
        most_steps: None where passes are counted.
    """

    least_tokens: int
    most_tokens: int
    batch_size: int
    accumulation: int
    passes: int
    most_passes: int | None
    least_steps: int
    most_steps: int | None
    learning_rate: float
    head_learning_rate: float
    why_rate: str
    why_head_rate: str


TINY_RECIPE = Recipe(
    least_tokens=64,
    most_tokens=64,  # what two cores train on in minutes
    batch_size=8,
    accumulation=1,
    passes=6,
    most_passes=None,
    least_steps=300,
    most_steps=2_000,
    learning_rate=1.0e-3,
    head_learning_rate=1.0e-3,
    why_rate="3 M parameters learn at this rate",
    why_head_rate="and so does the head",
)
FULL_RECIPE = Recipe(
    least_tokens=256,  # with fewer, scenes lose what is around an object
    most_tokens=1_280,
    batch_size=1,
    accumulation=8,
    passes=3,
    most_passes=30,
    least_steps=300,
    most_steps=None,
    learning_rate=1.0e-5,
    head_learning_rate=1.0e-4,
    why_rate="small, so that pre-trained weights are kept",
    why_head_rate="ten times as much: the head starts from nothing",
)


def choose_labels(labels: Mapping[str, int], num_samples: int, *, are_asked: bool = False) -> Setting:
    """The label set: all of the training samples, sorted, with the number of boxes of each.

    Where each sample says itself what is asked (``are_asked``), it is what images alone are asked for.

    Example:
        >>> choose_labels({"RBC": 2600, "WBC": 1}, 205)
        Setting(value=['RBC', 'WBC'],
                comment='those of 205 training samples, sorted', notes=('2,600 boxes', '1 box'))
    """
    if not labels:
        note = "samples say what is asked; this is what images without labels are asked for"
        return Setting([ANY_OBJECT], note) if are_asked else Setting(None)
    where = counted(num_samples, "training sample")
    if len(labels) > MOST_LABELS_LISTED:
        return Setting(None, f"all {len(labels):,} labels of {where}, sorted")
    notes = tuple(counted(count, "box") for count in labels.values())
    return Setting(list(labels), f"those of {where}, sorted", notes)


def choose_labels_per_request(tokens: Mapping[str, int]) -> int | None:
    """How many labels a request names, where all of them would take more than ``REQUEST_TOKENS``.

    So many that the longest fit, with what parts them.

    Example:
        >>> choose_labels_per_request(dict.fromkeys("abc", 5))
        >>> choose_labels_per_request({str(number): 5 for number in range(1203)})
        204
    """
    if sum(tokens.values()) <= REQUEST_TOKENS:
        return None
    longest = np.cumsum(sorted(tokens.values(), reverse=True))
    return max(1, int((longest <= REQUEST_TOKENS).sum()))


def choose_pixels(
    boxes: npt.NDArray[np.float64],
    image_sizes: Collection[tuple[int, int]],
    limits: PixelLimits,
    recipe: Recipe,
) -> Settings:
    """Pixel limits by boxes ``(N, 4)``: width and height of each and of its image; and by sizes of images."""
    side = limits.unit
    least, most = recipe.least_tokens * side**2, recipe.most_tokens * side**2
    if not len(boxes) or not image_sizes:
        return {"max_pixels": Setting(most)}
    largest = max(_rounded_up(width, side) * _rounded_up(height, side) for width, height in image_sizes)
    smallest = min(width * height for width, height in image_sizes)
    high = min(most, max(least, min(largest, _pixels_for(boxes, TOKENS_WANTED, side))))
    # Of the median box `config.images.small_objects` asks for a whole token.
    low = min(most, max(_pixels_for(boxes, TOKENS_NEEDED, side), _pixels_for(boxes, 1, side, 0.5)))
    chosen = {}
    if low > max(smallest, limits.min_pixels):
        chosen["min_pixels"] = Setting(low, "smaller images are enlarged: their boxes are small")
        high = max(high, low)
    why = "no image is shrunk" if high >= largest else "larger images are shrunk"
    if high == most < largest:
        why = "what this model is given at most"
    covered = _tokens(_tokens_of_small_boxes(boxes, high, low if chosen else limits.min_pixels, side))
    seen = f"{BOXES_SEEN * 100:g} % of {counted(len(boxes), 'box')} cover {covered} of {side}×{side} pixels"
    chosen["max_pixels"] = Setting(high, f"{why}; {seen}")
    return chosen


def _rounded_up(length: int, side: int) -> int:
    return math.ceil(length / side) * side


def _pixels_for(boxes: npt.NDArray[np.float64], tokens: float, side: int, share: float = BOXES_SEEN) -> int:
    """Pixels of the model's image with which a share of the boxes covers so many tokens."""
    width, height, image_width, image_height = boxes.T
    pixels = image_width * image_height * tokens * side**2 / (width * height)
    return math.ceil(float(np.quantile(pixels, share, method="higher")) / side**2) * side**2


def _tokens_of_small_boxes(boxes: npt.NDArray[np.float64], high: int, low: int, side: int) -> float:
    """Image tokens that ``BOXES_SEEN`` of the boxes cover at least, within the limits."""
    width, height, image_width, image_height = boxes.T
    pixels = image_width * image_height
    tokens = width * height / pixels * np.clip(pixels, low, high) / side**2
    return float(np.quantile(tokens, 1 - BOXES_SEEN, method="lower"))


def _tokens(number: float) -> str:
    shown = math.floor(number * 10) / 10 or math.floor(number * 1000) / 1000
    return f"{shown:g} image token{'' if shown == 1 else 's'} or more"


def choose_max_tokens(totals: Sequence[int], of_largest: int, *, is_exact: bool) -> Setting | None:
    """The token limit: what 99.9 % of the samples need, and a quarter more.

    Args:
        totals: tokens of each sample.
        of_largest: tokens of an image of ``data.max_pixels`` with its request; there is always room for it.
        is_exact: counted by the model's own tokenizer.

    Returns:
        None if there is nothing to go by.

    Example:
        >>> choose_max_tokens([400] * 204 + [1410], 450, is_exact=True)
        Setting(value=1792,
                comment='99.9 % of 205 samples need at most 1,410 tokens; a quarter more', notes=())
    """
    if not totals:
        return None
    need = int(np.quantile(totals, SAMPLES_FIT, method="higher"))
    wanted = max(need * TOKENS_SPARE, of_largest)
    most = f"at most {need:,}" if is_exact else f"at most about {need:,}"
    more = "a quarter more" if wanted > of_largest else f"{of_largest:,} for an image of max_pixels"
    comment = f"99.9 % of {counted(len(totals), 'sample')} need {most} tokens; {more}"
    return Setting(math.ceil(wanted / TOKENS_STEP) * TOKENS_STEP, comment)


def choose_queries(most_boxes: int) -> Setting | None:
    """Room for the boxes of the fullest image, in queries and in detections, where the default is too low.

    Example:
        >>> choose_queries(60) is None, choose_queries(213).value
        (True, 350)
    """
    default = DetectionConfig().num_queries
    if most_boxes * SPARE_QUERIES <= default:
        return None
    queries = min(1000, math.ceil(most_boxes * SPARE_QUERIES / 50) * 50)
    return Setting(queries, f"an image has up to {most_boxes:,} boxes; half as many again")


def choose_course(num_samples: int, recipe: Recipe) -> Settings:
    """How long to train, how fast, and how often to save."""
    in_step = recipe.batch_size * recipe.accumulation
    course = {}
    if recipe.most_steps is None:
        passes = _num_passes(num_samples, recipe)
        steps = math.ceil(passes * num_samples / in_step) if num_samples else recipe.least_steps
        why = f"{counted(passes, 'pass')} over {counted(num_samples, 'sample')}: about {steps:,} steps"
        course["epochs"] = Setting(float(passes), why if num_samples else "")
    else:
        steps = math.ceil(recipe.passes * num_samples / in_step)
        steps = min(recipe.most_steps, max(recipe.least_steps, steps))
        passes = max(1, round(steps * in_step / num_samples)) if num_samples else 0
        why = f"about {counted(passes, 'pass')} over {counted(num_samples, 'sample')}"
        course["max_steps"] = Setting(steps, why if num_samples else "")
    course["batch_size"] = Setting(recipe.batch_size)
    if recipe.accumulation > 1:
        why = f"a step sees {in_step} samples, as if they were one batch"
        course["gradient_accumulation_steps"] = Setting(recipe.accumulation, why)
    return course | {
        "learning_rate": Setting(recipe.learning_rate, recipe.why_rate),
        "head_learning_rate": Setting(recipe.head_learning_rate, recipe.why_head_rate),
        "save_steps": Setting(_save_steps(steps), "steps between two checkpoints, for --resume"),
        "logging_steps": Setting(10),
    }


def _save_steps(steps: int) -> int:
    """Three checkpoints a run, 500 steps apart at most, a round number where that is possible."""
    third = min(500, steps // 3)
    return max(1, third // 10 * 10 or third)


def _num_passes(num_samples: int, recipe: Recipe) -> int:
    """Passes over the samples: more where there are few, until a new head has the steps that it needs."""
    if not num_samples:
        return recipe.passes
    in_step = recipe.batch_size * recipe.accumulation
    wanted = math.ceil(recipe.least_steps * in_step / num_samples)
    return min(recipe.most_passes or wanted, max(recipe.passes, wanted))


def counted(number: int, noun: str) -> str:
    """A number and what it counts.

    Example:
        >>> counted(1, "box"), counted(2600, "box"), counted(3, "sample")
        ('1 box', '2,600 boxes', '3 samples')
    """
    ending = "" if number == 1 else "es" if noun.endswith(("x", "s")) else "s"
    return f"{number:,} {noun}{ending}"
