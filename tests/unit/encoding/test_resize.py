"""Box frames: the model's image is what the processor made, and boxes come back from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from qwendet.answers.format import format_answer, parse_answer
from qwendet.boxes import paired_iou_and_giou
from qwendet.data.samples import DetectedObject, Turn
from qwendet.encoding.resize import model_image_size, require_inside, rescale_xyxy
from qwendet.errors import DataError

Box = tuple[float, float, float, float]

SMALL = {"shortest_edge": 56 * 56, "longest_edge": 224 * 224}
PUBLISHED = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
SIZES = [
    (640, 480),
    (481, 640),
    (1920, 1080),
    (3024, 4032),
    (600, 45),
    (31, 29),
    (2, 300),
    (28, 28),
    (41, 43),
]


def processor(limits: dict[str, int]) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(size=dict(limits))


def iou(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    pair = (torch.as_tensor(np.asarray(box, dtype=np.float64)) for box in (a, b))
    return paired_iou_and_giou(*pair)[0].item()


@pytest.mark.parametrize("limits", [SMALL, PUBLISHED], ids=["small", "published"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_model_image_size__is_that_of_the_processors_image(
    width: int, height: int, limits: dict[str, int]
) -> None:
    features = processor(limits)(images=[Image.new("RGB", (width, height))], return_tensors="np")
    size = model_image_size(features["image_grid_thw"][0].tolist(), 14)
    resized_height, resized_width = smart_resize(
        height, width, 28, limits["shortest_edge"], limits["longest_edge"]
    )
    assert size == (resized_width, resized_height)
    assert size[0] * size[1] == len(features["pixel_values"]) * 14 * 14


def test_model_image_size__a_line_drawn_at_a_box_edge_is_found_there() -> None:
    """The pixels themselves: columns left of x1 in the model's image are black, those right of it white."""
    pixels = np.zeros((300, 500, 3), dtype=np.uint8)
    pixels[:, 250:] = 255
    features = processor(SMALL)(images=[Image.fromarray(pixels)], return_tensors="np")
    _, rows, columns = grid = features["image_grid_thw"][0].tolist()
    width, height = model_image_size(grid, 14)
    blocks = features["pixel_values"].reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[..., 0, :, :]
    image = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(height, width, 3)
    is_white = image[..., 0] > 0
    (box,) = rescale_xyxy([(250, 0, 500, 300)], (500, 300), (width, height)).tolist()
    assert box == pytest.approx([width / 2, 0, width, height])
    assert is_white[:, int(box[0]) + 1 :].all()
    assert not is_white[:, : int(box[0]) - 1].any()


def round_trip(box: Box, displayed: tuple[int, int], model: tuple[int, int]) -> Box:
    """Displayed pixels, to the answer's text, and back."""
    (moved,) = rescale_xyxy([box], displayed, model).tolist()
    (parsed,) = parse_answer(format_answer([DetectedObject(tuple(moved), "x")])).objects
    (back,) = rescale_xyxy([parsed.bbox_2d], model, displayed).tolist()
    return tuple(back)


@pytest.mark.parametrize(
    ("displayed", "limits"),
    [
        ((640, 480), PUBLISHED),
        ((1280, 720), PUBLISHED),
        ((1920, 1080), PUBLISHED),
        ((3024, 4032), PUBLISHED),
        ((481, 640), PUBLISHED),
    ],
)
def test_answer_round_trip__keeps_boxes_of_realistic_photographs(
    displayed: tuple[int, int], limits: dict[str, int]
) -> None:
    width, height = displayed
    features = processor(limits)(images=[Image.new("RGB", displayed)], return_tensors="np")
    model = model_image_size(features["image_grid_thw"][0].tolist(), 14)
    generator = np.random.default_rng(0)
    for _ in range(200):
        sides = generator.uniform(0.45, 1.0, 2) * displayed
        corner = generator.uniform(0, 1, 2) * (np.array(displayed) - sides)
        box = (*corner.tolist(), *(corner + sides).tolist())
        assert iou(box, round_trip(box, (width, height), model)) >= 0.99


SIDES = st.integers(28, 4000)


@given(SIDES, SIDES, st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.05, 1), st.floats(0.05, 1)))
def test_answer_round_trip__loses_at_most_half_a_pixel_of_the_models_image(
    width: int, height: int, shares: Box
) -> None:
    resized_height, resized_width = smart_resize(height, width, 28, 56 * 56, 28 * 28 * 1280)
    model = (resized_width, resized_height)
    left, top, wide, high = shares
    box = (
        left * width,
        top * height,
        min(1.0, left + wide) * width,
        min(1.0, top + high) * height,
    )
    back = round_trip(box, (width, height), model)
    half_pixel = np.array([width / model[0], height / model[1]] * 2) * 0.5
    assert (np.abs(np.subtract(box, back)) <= half_pixel + 1e-6).all()
    model_sides = rescale_xyxy([box], (width, height), model)[0]
    lost = 1 / (model_sides[2] - model_sides[0]) + 1 / (model_sides[3] - model_sides[1])
    assert iou(box, back) >= 1 - lost - 1e-9


@given(SIDES, SIDES, SIDES, SIDES, st.tuples(*[st.floats(0, 4000)] * 4))
def test_rescale_xyxy__there_and_back_is_where_it_was(
    width: int, height: int, other_width: int, other_height: int, box: Box
) -> None:
    there = rescale_xyxy([box], (width, height), (other_width, other_height))
    back = rescale_xyxy(there, (other_width, other_height), (width, height))
    np.testing.assert_allclose(back, [box], rtol=1e-12, atol=1e-12)


def test_rescale_xyxy__no_boxes_stay_no_boxes() -> None:
    assert rescale_xyxy([], (640, 480), (1, 1)).shape == (0, 4)


@pytest.mark.parametrize("box", [(0, 0, 64, 48), (63.5, 47.5, 64, 48)])
def test_require_inside__accepts_boxes_up_to_the_edge(box: Box) -> None:
    require_inside(Turn("a.png", (DetectedObject(box, "cat"),)), (64, 48), "x.jsonl:1")


@pytest.mark.parametrize("box", [(-0.5, 0, 5, 5), (0, -1, 5, 5), (0, 0, 64.5, 5), (0, 0, 5, 49)])
def test_require_inside__names_the_box_that_leaves(box: Box, refusal: Callable[..., DataError]) -> None:
    turn = Turn("a.png", (DetectedObject((1, 1, 2, 2), "cat"), DetectedObject(box, "cat")))
    error = refusal(require_inside, turn, (64, 48), "x.jsonl:7")
    assert error.problems[0].where == "x.jsonl:7"
    assert error.problems[0].what == f"objects[1].bbox_2d: {list(box)} leaves a.png, which is 64x48"
    assert error.problems[0].fix == "give xyxy pixels of the image as displayed, or clip the box"
