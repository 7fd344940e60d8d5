"""Boxes: worked examples, and the shapes and degenerate boxes that training meets."""

from __future__ import annotations

import pytest
import torch

from qwendet.boxes import (
    area,
    clip_xyxy,
    cxcywh_to_xyxy,
    paired_iou_and_giou,
    pairwise_iou,
    xyxy_to_cxcywh,
)

UNIT = (0.0, 0.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("other", "iou", "giou"),
    [
        (UNIT, 1.0, 1.0),
        ((1.0, 1.0, 3.0, 3.0), 1 / 7, 1 / 7 - 2 / 9),
        ((0.0, 0.0, 1.0, 2.0), 0.5, 0.5),
        ((4.0, 0.0, 6.0, 2.0), 0.0, -1 / 3),
        ((2.0, 0.0, 4.0, 2.0), 0.0, 0.0),
        ((1.0, 1.0, 1.0, 1.0), 0.0, 0.0),
        ((3.0, 3.0, 1.0, 1.0), 0.0, 0.0),
    ],
    ids=["same", "corner", "half", "apart", "touching", "a point", "inside out"],
)
def test_paired_iou_and_giou__worked_examples(
    other: tuple[float, float, float, float], iou: float, giou: float
) -> None:
    found = paired_iou_and_giou(
        torch.tensor(UNIT, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    )
    assert [value.item() for value in found] == pytest.approx([iou, giou])


def test_paired_iou_and_giou__two_points_are_finite_and_so_is_their_gradient() -> None:
    point = torch.tensor([1.0, 1.0, 1.0, 1.0], requires_grad=True)
    iou, giou = paired_iou_and_giou(point, torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert (iou.item(), giou.item()) == (0.0, 0.0)
    (gradient,) = torch.autograd.grad(iou + giou, point)
    assert gradient.isfinite().all()


def test_pairwise_iou__has_a_row_for_each_of_the_first_boxes() -> None:
    first = torch.tensor([UNIT, (0.0, 0.0, 1.0, 1.0)])
    second = torch.tensor([UNIT, (1.0, 0.0, 3.0, 2.0), (5.0, 5.0, 6.0, 6.0)])
    expected = torch.tensor([[1.0, 1 / 3, 0.0], [1 / 4, 0.0, 0.0]])
    torch.testing.assert_close(pairwise_iou(first, second), expected)
    assert pairwise_iou(first[:0], second).shape == (0, 3)


def test_area__of_empty_and_inside_out_boxes_is_0() -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 3.0, 2.0], [1.0, 1.0, 1.0, 4.0], [3.0, 3.0, 1.0, 1.0], [3.0, 0.0, 1.0, 2.0]]
    )
    assert area(boxes).tolist() == [6.0, 0.0, 0.0, 0.0]


def test_clip_xyxy__cuts_at_each_edge() -> None:
    boxes = torch.tensor([[-5.0, -1.0, 700.0, 500.0], [10.0, 20.0, 30.0, 40.0], [650.0, -9.0, 660.0, -2.0]])
    assert clip_xyxy(boxes, 640, 480).tolist() == [
        [0, 0, 640, 480],
        [10, 20, 30, 40],
        [640, 0, 640, 0],
    ]


def test_conversions__keep_leading_dimensions_and_accept_no_box() -> None:
    boxes = torch.rand(2, 3, 4)
    assert xyxy_to_cxcywh(boxes).shape == (2, 3, 4)
    assert cxcywh_to_xyxy(torch.zeros(0, 4)).shape == (0, 4)
