"""Box formats, clipping, IoU and GIoU, on torch tensors.

A box is ``xyxy`` (corners) or ``cxcywh`` (centre and size); the name of a variable says which.
"""

from __future__ import annotations

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert corners ``(..., 4)``, in any unit, to centre and size in the same unit.

    Example:
        >>> xyxy_to_cxcywh(torch.tensor([[10.0, 20.0, 30.0, 60.0]])).tolist()
        [[20.0, 40.0, 20.0, 40.0]]
    """
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert centre and size to corners; the inverse of :func:`xyxy_to_cxcywh`.

    Example:
        >>> cxcywh_to_xyxy(torch.tensor([[20.0, 40.0, 20.0, 40.0]])).tolist()
        [[10.0, 20.0, 30.0, 60.0]]
    """
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Area ``(...)`` of ``(..., 4)`` boxes; 0 where a box is empty or turned inside out."""
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def paired_iou_and_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of broadcast pairs.

    GIoU is IoU minus the share of the smallest enclosing box that neither box covers
    (Rezatofighi et al. 2019, eq. 1 and algorithm 1), so it lies in ``(-1, 1]``. Empty boxes have
    IoU 0, never NaN.

    Args:
        a_xyxy: ``(..., 4)`` float.
        b_xyxy: ``(..., 4)`` float in the same unit, broadcast against ``a_xyxy``.

    Returns:
        ``iou`` and ``giou``, each ``(...)``.

    Example:
        >>> a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 3.0, 2.0])
        >>> [round(value.item(), 4) for value in paired_iou_and_giou(a, b)]
        [0.3333, 0.3333]
    """
    tiny = torch.finfo(a_xyxy.dtype).tiny
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = area(torch.cat([low, high], dim=-1))
    union = area(a_xyxy) + area(b_xyxy) - intersection
    iou = intersection / union.clamp(min=tiny)
    hull_low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = area(torch.cat([hull_low, hull_high], dim=-1))
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU of every box of ``a`` ``(N, 4)`` with every box of ``b`` ``(M, 4)``: ``(N, M)``.

    Example:
        >>> pairwise_iou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.zeros(0, 4)).shape
        torch.Size([1, 0])
    """
    return paired_iou_and_giou(a_xyxy[:, None], b_xyxy[None])[0]


def clip_xyxy(boxes_xyxy: Tensor, width: float, height: float) -> Tensor:
    """Cut boxes ``(..., 4)``, in pixels, at the edges of an image of this width and height."""
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return torch.minimum(boxes_xyxy.clamp(min=0), limit)
