"""Boxes: bounds and symmetry of IoU and GIoU, conversions that invert, and pycocotools' own IoU."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from qwendet.boxes import area, clip_xyxy, cxcywh_to_xyxy, paired_iou_and_giou, pairwise_iou, xyxy_to_cxcywh

Box = tuple[float, float, float, float]


@st.composite
def xyxy(draw: st.DrawFn, least_side: float = 0.0) -> Box:
    x1, y1 = draw(st.floats(-100, 3000)), draw(st.floats(-100, 3000))
    sides = st.floats(least_side, 3000)
    return x1, y1, x1 + draw(sides), y1 + draw(sides)


def tensor(boxes: list[Box] | Box) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


@given(xyxy(), xyxy())
def test_iou_and_giou__are_bounded_and_symmetric(first: Box, second: Box) -> None:
    a, b = tensor(first), tensor(second)
    iou, giou = paired_iou_and_giou(a, b)
    assert -1e-12 <= iou.item() <= 1 + 1e-12
    assert -1 - 1e-12 <= giou.item() <= iou.item() + 1e-12
    torch.testing.assert_close(paired_iou_and_giou(b, a), (iou, giou), rtol=0, atol=1e-12)


@given(xyxy(), xyxy())
def test_iou__float32_stays_within_its_bounds(first: Box, second: Box) -> None:
    iou, giou = paired_iou_and_giou(tensor(first).float(), tensor(second).float())
    assert -1e-6 <= iou.item() <= 1 + 1e-6
    assert -1 - 1e-6 <= giou.item() <= iou.item() + 1e-6


@given(xyxy(least_side=1e-3), st.floats(0.01, 100), st.floats(-50, 50))
def test_iou_and_giou__do_not_depend_on_the_frame(box: Box, scale: float, shift: float) -> None:
    a, b = tensor(box), tensor((0.0, 0.0, 640.0, 480.0))
    expected = paired_iou_and_giou(a, b)
    torch.testing.assert_close(
        paired_iou_and_giou(a * scale + shift, b * scale + shift), expected, rtol=0, atol=1e-6
    )


@given(
    st.lists(xyxy(least_side=0.5), min_size=1, max_size=5),
    st.lists(xyxy(least_side=0.5), min_size=1, max_size=5),
)
def test_pairwise_iou__is_that_of_pycocotools(first: list[Box], second: list[Box]) -> None:
    a, b = tensor(first), tensor(second)
    expected = coco_mask.iou(to_xywh(a), to_xywh(b), np.zeros(len(b), dtype=np.uint8))
    np.testing.assert_allclose(pairwise_iou(a, b).numpy(), expected, rtol=0, atol=1e-9)


def to_xywh(boxes: torch.Tensor) -> np.ndarray:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).numpy()


@given(st.lists(xyxy(), max_size=5))
def test_conversions__invert(boxes: list[Box]) -> None:
    corners = tensor(boxes)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(corners)), corners, rtol=0, atol=1e-9)


@given(xyxy(), st.integers(1, 4000), st.integers(1, 4000))
def test_clip_xyxy__lies_inside_and_twice_is_once(box: Box, width: int, height: int) -> None:
    clipped = clip_xyxy(tensor(box), width, height)
    assert (clipped >= 0).all()
    assert (clipped <= torch.tensor([width, height, width, height])).all()
    assert torch.equal(clip_xyxy(clipped, width, height), clipped)
    assert area(clipped) <= area(tensor(box)) + 1e-9
