"""Boxes around run-length encoded masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwendet.data.formats.records import Box
from qwendet.errors import DataError


def from_mask(mask: Mapping[str, Any], where: str) -> Box:
    """The box around a mask in COCO's encoding, compressed or not.

    Raises:
        DataError: if it is none.
    """
    from pycocotools import mask as coco_mask

    size, counts = mask.get("size"), mask.get("counts")
    is_size = (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 0 < side < 2**16 for side in size)
    )
    is_list = isinstance(counts, list) and all(type(run) is int and 0 <= run < 2**32 for run in counts)
    if not is_size or not (is_list or (isinstance(counts, str) and counts.isascii())):
        raise DataError(
            f"segmentation: expected a mask, got {mask!r:.80}", where, "draw the box or remove it"
        )
    height, width = size  # type: ignore[misc]
    encoded = coco_mask.frPyObjects(mask, height, width) if is_list else mask
    if is_list and sum(counts) != height * width:  # type: ignore[arg-type]
        raise DataError(
            "segmentation: the mask's counts do not fill its size", where, "draw the box or remove it"
        )
    x, y, w, h = (float(value) for value in coco_mask.toBbox(encoded))
    return x, y, x + w, y + h
