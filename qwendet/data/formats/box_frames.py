"""In which frame the boxes of conversations are written: decided from all of them, or not at all.

A box seldom tells; many do. As what they are not, some leave the frame; and that none of them does by chance
where images are far larger, or far smaller, than 1000 pixels is too unlikely to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from qwendet.data.formats.records import Box
from qwendet.data.samples import DetectedObject
from qwendet.families.choose import FAMILIES
from qwendet.families.family import THOUSANDTHS

BoxFrame = Literal["pixels", "resized", "thousandths", "fractions"]
RESIZED = next(family for family in FAMILIES.values() if family.frame == "pixels")
"""The family whose answers are in pixels of the resized image."""
NAMES: dict[BoxFrame, str] = {
    "pixels": "pixels of the image",
    "resized": f"pixels of the image as {RESIZED.name} resizes it",
    "thousandths": f"0-1000 of the image, which {RESIZED.name} does not write, and the other families do",
    "fractions": "0-1 of the image",
}
ROUNDING = 0.5
"""Pixels, or thousandths, by which a rounded box may leave its frame."""
MOST_STRAYS = 0.02
"""Share of broken boxes that a frame may leave unexplained."""
UNLIKELY = math.log(1e-4)
"""Log of the probability by which chance is ruled out: that the furthest box of each image stays within."""

Size = tuple[int, int]


def frame_size(frame: BoxFrame, size: Size) -> Size:
    """Width and height that coordinates range over in an image of this size.

    Example:
        >>> frame_size("resized", (640, 480)), frame_size("thousandths", (640, 480))
        ((644, 476), (1000, 1000))
    """
    if frame == "pixels":
        return size
    if frame == "resized":
        return RESIZED.limits.resized(size)
    return (1, 1) if frame == "fractions" else (THOUSANDTHS, THOUSANDTHS)


def to_pixels(box: Box, frame: BoxFrame, size: Size) -> Box:
    """A box in pixels of the image, from a frame of it.

    Example:
        >>> to_pixels((100, 500, 500, 1000), "thousandths", (640, 480))
        (64.0, 240.0, 320.0, 480.0)
    """
    across, down = (side / whole for side, whole in zip(size, frame_size(frame, size), strict=True))
    x1, y1, x2, y2 = (
        round(value * by, 4) for value, by in zip(box, (across, down, across, down), strict=True)
    )
    return x1, y1, x2, y2


def from_pixels(found: DetectedObject, frame: BoxFrame, size: Size) -> DetectedObject:
    """An object with its box in a frame, from pixels of the image; not rounded."""
    across, down = (whole / side for side, whole in zip(size, frame_size(frame, size), strict=True))
    x1, y1, x2, y2 = found.bbox_2d
    return replace(found, bbox_2d=(x1 * across, y1 * down, x2 * across, y2 * down))


class FrameEvidence:
    """What the boxes of many images, seen one after another, say of their frame.

    Example:
        >>> evidence = FrameEvidence()
        >>> evidence.add((640, 480), [(100, 100, 900, 950)], is_new=True)
        >>> evidence.tell()[0]
        'thousandths'
    """

    def __init__(self) -> None:
        self.count = self.num_images = 0
        self.most = 0.0
        self.out: dict[BoxFrame, int] = {frame: 0 for frame in NAMES if frame != "fractions"}
        self.small, self.large = dict.fromkeys(self.out, 0.0), dict.fromkeys(self.out, 0.0)

    def add(self, size: Size, boxes: Sequence[Box], *, is_new: bool) -> None:
        """Take boxes as they are written; ``is_new`` for the first ones of an image."""
        if not boxes:
            return
        corners = np.array(boxes, dtype=np.float64)
        self.count += len(boxes)
        self.num_images += is_new
        self.most = max(self.most, float(corners.max()))
        for frame in self.out:
            sides = frame_size(frame, size)
            outside = (corners > np.array(sides * 2) + ROUNDING) | (corners < -ROUNDING)
            self.out[frame] += int(outside.any(axis=1).sum())
            for side in sides if is_new else ():
                self.small[frame] += min(0.0, math.log(side / THOUSANDTHS))
                self.large[frame] += min(0.0, math.log(THOUSANDTHS / side))

    def tell(self) -> tuple[BoxFrame | None, str]:
        """The frame, and how it is known; None, and why not, where it cannot be decided."""
        if self.most <= 1:
            return "fractions", f"no number of {self.count} boxes is above 1"
        out = self.out
        fits = [frame for frame in out if out[frame] <= MOST_STRAYS * self.count]
        counts = (
            f"of {self.count} boxes {out['pixels']} leave their image as pixels, {out['resized']} as pixels"
            f" of the resized image, {out['thousandths']} as 0-1000"
        )
        if not fits or fits[0] == "thousandths" or "thousandths" not in fits:
            return (fits[0] if fits else None), counts
        is_small, is_large = (sums[fits[0]] < UNLIKELY for sums in (self.small, self.large))
        if is_small == is_large:
            return None, f"{counts}, and the images are too few, or too near to 1000 pixels, to say more"
        frame: BoxFrame = fits[0] if is_small else "thousandths"
        return (
            frame,
            f"{counts}; in {self.num_images} {'small' if is_small else 'large'} images that is no chance",
        )
