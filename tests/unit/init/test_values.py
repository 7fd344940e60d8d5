"""qwendet init: from numbers to settings. Every rule is asked with numbers that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from qwendet.config.schema import Config
from qwendet.families.family import PixelLimits
from qwendet.init.values import (
    FULL_RECIPE,
    TINY_RECIPE,
    Setting,
    choose_course,
    choose_labels,
    choose_labels_per_request,
    choose_max_tokens,
    choose_pixels,
    choose_queries,
)

PHOTO = (640, 480)
LIMITS = PixelLimits(3136, 12_845_056, 28)  # Qwen2.5-VL's
"""307,200 pixels; 23 × 18 squares of 28 pixels hold it, which is 324,576."""


def boxes_of(side: float, image: tuple[int, int] = PHOTO, count: int = 100) -> npt.NDArray[np.float64]:
    return np.array([[side, side, *image]] * count, dtype=np.float64)


def pixels(
    boxes: npt.NDArray[np.float64], *sizes: tuple[int, int], recipe: object = FULL_RECIPE
) -> tuple[int | None, int, str]:
    chosen = choose_pixels(boxes, sizes or {PHOTO}, LIMITS, recipe)  # type: ignore[arg-type]
    low = chosen.get("min_pixels")
    return None if low is None else low.value, chosen["max_pixels"].value, chosen["max_pixels"].comment


@pytest.mark.parametrize(
    ("side", "low", "high", "comment"),
    [
        # 4 tokens are 56×56 pixels: a box of 50 has 3.18 of them in the whole image.
        (
            50,
            None,
            324_576,
            "no image is shrunk; 95 % of 100 boxes cover 3.1 image tokens or more of 28×28 pixels",
        ),
        # 4·784/6400 of 307,200 is 150,528 = 192 squares; below the least that keeps what is around an object.
        (80, None, 200_704, "larger images are shrunk; 95 % of 100 boxes cover 5.3 image tokens or more"),
        # 4·784/4225 of 307,200 is 228,020; the next multiple of 784 is 228,144.
        (65, None, 228_144, "larger images are shrunk; 95 % of 100 boxes cover 4 image tokens or more"),
        # 9 pixels cover a tenth of a token: the image would become 5 times as large, more than is given.
        (9, 1_003_520, 1_003_520, "no image is shrunk; 95 % of 100 boxes cover 0.3 image tokens or more"),
        # 784/256 of 307,200 is 940,800 = 1,200 squares: the median box covers one.
        (16, 940_800, 940_800, "no image is shrunk; 95 % of 100 boxes cover 1 image token or more"),
        (29, None, 324_576, "no image is shrunk; 95 % of 100 boxes cover 1 image token or more"),
    ],
)
def test_pixels__by_the_size_of_boxes(side: float, low: int | None, high: int, comment: str) -> None:
    found = pixels(boxes_of(side))
    assert found[:2] == (low, high)
    assert found[2].startswith(comment)


def test_pixels__half_a_token_is_enough_for_most_and_half_of_the_boxes_have_a_whole_one() -> None:
    """0.5·784/256 of 307,200 is 470,400 = 600 squares."""
    mixed = np.concatenate([boxes_of(40, count=60), boxes_of(16, count=40)])
    assert pixels(mixed)[:2] == (470_400, 470_400)


def test_pixels__one_box_in_twenty_may_be_a_mistake() -> None:
    few = np.concatenate([boxes_of(65, count=96), boxes_of(2, count=4)])
    many = np.concatenate([boxes_of(65, count=94), boxes_of(2, count=6)])
    assert pixels(few)[:2] == (None, 228_144)
    assert pixels(many)[:2] == (1_003_520, 1_003_520)


def test_pixels__the_most_that_a_model_is_given() -> None:
    large = (4000, 3000)
    assert pixels(boxes_of(100, large), large) == (
        None,
        1_003_520,
        "what this model is given at most; 95 % of 100 boxes cover 1 image token or more of 28×28 pixels",
    )
    assert pixels(boxes_of(100, large), large, recipe=TINY_RECIPE)[:2] == (None, 50_176)
    assert (
        "95 % of 100 boxes cover 0.002 image tokens"
        in pixels(boxes_of(20, large), large, recipe=TINY_RECIPE)[2]
    )


def test_pixels__are_counted_in_units_of_the_family() -> None:
    """A box of 50 covers 2.4 tokens of 32×32; the rest of the rule is in tokens."""
    limits = PixelLimits(65_536, 16_777_216, 32)
    found = choose_pixels(boxes_of(50), {PHOTO}, limits, FULL_RECIPE)["max_pixels"]
    assert found.value == 640 * 480
    assert found.comment.endswith("cover 2.4 image tokens or more of 32×32 pixels")
    small = choose_pixels(boxes_of(9, (64, 64)), {(64, 64)}, limits, FULL_RECIPE)["max_pixels"]
    assert "cover 1.2 image tokens" in small.comment, "the processor makes 256×256 of it"
    large = choose_pixels(boxes_of(100, (4000, 3000)), {(4000, 3000)}, limits, FULL_RECIPE)["max_pixels"]
    assert large.value == 1_280 * 32 * 32
    assert choose_pixels(np.zeros((0, 4)), (), limits, TINY_RECIPE) == {"max_pixels": Setting(65_536)}


def test_pixels__without_boxes_or_sizes() -> None:
    assert choose_pixels(np.zeros((0, 4)), {PHOTO}, LIMITS, FULL_RECIPE) == {"max_pixels": Setting(1_003_520)}
    assert choose_pixels(boxes_of(9), (), LIMITS, TINY_RECIPE) == {"max_pixels": Setting(50_176)}


@pytest.mark.parametrize(
    ("totals", "limit", "need"),
    [
        ([100], 128, "1 sample need at most 100"),
        ([400] * 204 + [1410], 1792, "205 samples need at most 1,410"),  # 1762.5, in steps of 128
        ([400] * 1999 + [9000], 512, "2,000 samples need at most 400"),  # one in 2,000 is not in 99.9 %
        ([1024], 1280, "1 sample need at most 1,024"),
    ],
)
def test_max_tokens__is_the_999th_thousandth_and_a_quarter(totals: list[int], limit: int, need: str) -> None:
    found = choose_max_tokens(totals, 0, is_exact=True)
    assert found is not None
    assert found.value == limit
    assert need in found.comment


def test_max_tokens__an_estimate_says_so() -> None:
    found = choose_max_tokens([1000], 0, is_exact=False)
    assert found is not None
    assert "at most about 1,000 tokens" in found.comment
    assert choose_max_tokens([], 0, is_exact=True) is None


def test_max_tokens__the_largest_image_always_fits() -> None:
    found = choose_max_tokens([100], 300, is_exact=True)
    assert found == Setting(384, "99.9 % of 1 sample need at most 100 tokens; 300 for an image of max_pixels")


def test_labels__a_few_are_listed_many_are_counted() -> None:
    assert choose_labels({}, 3) == Setting(None)
    assert choose_labels({f"l{n:02}": 1 for n in range(20)}, 1).notes == ("1 box",) * 20
    many = choose_labels({f"l{n:02}": 1 for n in range(21)}, 7)
    assert many == Setting(None, "all 21 labels of 7 training samples, sorted")


def test_labels__that_samples_bring_along() -> None:
    found = choose_labels({}, 3, are_asked=True)
    assert found.value == ["object"]
    assert "samples say what is asked" in found.comment


@pytest.mark.parametrize(("count", "most"), [(100, None), (102, None), (103, 102), (1203, 102)])
def test_labels_per_request__are_those_that_fit_1024_tokens(count: int, most: int | None) -> None:
    assert choose_labels_per_request({f"label {number}": 10 for number in range(count)}) == most


def test_labels_per_request__makes_room_for_the_longest() -> None:
    tokens = {"long": 1000} | {f"label {number}": 2 for number in range(100)}
    assert choose_labels_per_request(tokens) == 13


@pytest.mark.parametrize(("most", "queries"), [(0, None), (66, None), (67, 150), (213, 350), (900, 1000)])
def test_queries__are_half_as_many_again_as_the_fullest_image_has(most: int, queries: int | None) -> None:
    found = choose_queries(most)
    assert (None if found is None else found.value) == queries


@pytest.mark.parametrize(
    ("num_samples", "epochs", "comment", "save_steps"),
    [
        (18, 30.0, "30 passes over 18 samples: about 68 steps", 20),
        (205, 12.0, "12 passes over 205 samples: about 308 steps", 100),
        (2_000, 3.0, "3 passes over 2,000 samples: about 750 steps", 250),
        (118_000, 3.0, "3 passes over 118,000 samples: about 44,250 steps", 500),
        (0, 3.0, "", 100),
    ],
)
def test_course__of_the_full_model(num_samples: int, epochs: float, comment: str, save_steps: int) -> None:
    course = choose_course(num_samples, FULL_RECIPE)
    assert course["epochs"] == Setting(epochs, comment)
    assert course["save_steps"].value == save_steps
    assert (course["learning_rate"].value, course["head_learning_rate"].value) == (1e-5, 1e-4)


@pytest.mark.parametrize(
    ("num_samples", "steps", "comment"),
    [
        (1, 300, "about 2,400 passes over 1 sample"),
        (205, 300, "about 12 passes over 205 samples"),
        (1_000, 750, "about 6 passes over 1,000 samples"),
        (100_000, 2_000, "about 1 pass over 100,000 samples"),
        (0, 300, ""),
    ],
)
def test_course__of_the_tiny_model(num_samples: int, steps: int, comment: str) -> None:
    assert choose_course(num_samples, TINY_RECIPE)["max_steps"] == Setting(steps, comment)


def test_course__of_the_demo_is_300_steps_of_16() -> None:
    course = choose_course(768, replace(TINY_RECIPE, batch_size=16))
    assert (course["max_steps"].value, course["batch_size"].value) == (300, 16)


def test_recipes__are_settings_that_the_config_takes() -> None:
    for recipe in (TINY_RECIPE, FULL_RECIPE):
        course = {key: setting.value for key, setting in choose_course(205, recipe).items()}
        Config.model_validate({"train": course})
