"""Polygons and masks of objects: kept beside their boxes, moved and cut with the image, never trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwendet.data.images import MAX_IMAGE_PIXELS
from qwendet.errors import DataError, expect

Box = tuple[float, float, float, float]
Ring = tuple[float, ...]
"""x1, y1, x2, y2 …, a corner after another: pixels of the image as displayed."""
Move = Callable[[float, float], tuple[float, float]]
"""Where a point of the image goes."""

FIT = 1.0
"""Pixels by which each edge of a box may be off the extent of its polygon or mask."""
RING_FIX = "give x and y of at least three corners, or remove it: the box stays"
RLE_FIX = "write COCO's run-length encoding of the whole image, or remove it: the box stays"


@dataclass(frozen=True, slots=True)
class Rle:
    """A mask of the whole image in COCO's run-length encoding: compressed, or as numbers."""

    height: int
    width: int
    counts: str | tuple[int, ...]

    def to_coco(self) -> dict[str, Any]:
        """As COCO and pycocotools write it."""
        counts = self.counts if isinstance(self.counts, str) else list(self.counts)
        return {"size": [self.height, self.width], "counts": counts}


Segmentation = tuple[Ring, ...] | Rle
"""Polygons, whose union the object is, or a mask: as COCO has it."""


def read_segmentation(record: Mapping[str, Any], where: str, path: str) -> Segmentation | None:
    """``polygon`` or ``rle`` of an object of a sample; raises as :func:`read_rings` and :func:`read_rle`."""
    if "polygon" in record and "rle" in record:
        raise DataError(f"{path}: expected polygon or rle, got both", where, "keep one of them")
    if "rle" in record:
        return read_rle(record["rle"], where, f"{path}.rle")
    return read_rings(record["polygon"], where, f"{path}.polygon") if "polygon" in record else None


def read_rings(value: Any, where: str, name: str) -> tuple[Ring, ...]:
    """Polygons as a file has them.

    Raises:
        DataError: naming the first that is none.

    Example:
        >>> read_rings([[1, 2, 5, 2, 5, 9]], "a.jsonl:1", "polygon")
        ((1, 2, 5, 2, 5, 9),)
    """
    expect(isinstance(value, list) and len(value) > 0, name, "a list of polygons", value, where, RING_FIX)
    for index, ring in enumerate(value):
        is_ring = isinstance(ring, list) and _are_finite(ring)
        expect(is_ring, f"{name}[{index}]", "[x1, y1, x2, y2, x3, y3, …]", ring, where, RING_FIX)
        if len(ring) < 6 or len(ring) % 2:
            what = f"{name}[{index}]: expected x and y of three corners or more, got {len(ring)} numbers"
            raise DataError(what, where, RING_FIX)
    return tuple(map(tuple, value))


def _are_finite(ring: list[Any]) -> bool:
    """Whether all are numbers of a size that pixels have; without a loop, since sets have millions."""
    are_numbers = set(map(type, ring)) <= {int, float}
    return are_numbers and min(ring, default=0) > -1e9 and max(ring, default=0) < 1e9 and not isnan(sum(ring))


def read_rle(value: Any, where: str, name: str) -> Rle:
    """A mask in COCO's encoding, as a file has it.

    Raises:
        DataError: if it is none.
    """
    size, counts = (value.get("size"), value.get("counts")) if isinstance(value, Mapping) else (None, None)
    is_size = (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 0 < side < 2**16 for side in size)
    )
    is_list = isinstance(counts, list) and all(type(run) is int and 0 <= run < 2**32 for run in counts)
    is_mask = is_size and (is_list or (isinstance(counts, str) and counts.isascii()))
    expect(is_mask, name, "a mask", value, where, RLE_FIX)
    height, width = size  # type: ignore[misc]
    runs = counts if is_list else _runs(str(counts))
    if sum(runs) != height * width or min(runs) < 0:  # type: ignore[arg-type]
        raise DataError(f"{name}: the mask's counts do not fill its size", where, RLE_FIX)
    return Rle(height, width, tuple(counts) if is_list else counts)  # type: ignore[arg-type]


def _runs(counts: str) -> list[int]:
    """Compressed counts as numbers: 5 bits a character, from the third on the difference to the last but one.

    pycocotools decodes what does not fill the mask without complaint, and leaves the rest to chance.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def require_size(found: Segmentation | None, size: tuple[int, int], where: str, name: str) -> None:
    """Refuse a mask of an image of another size than this width and height.

    Raises:
        DataError: naming both sizes.
    """
    if isinstance(found, Rle) and (found.width, found.height) != size:
        shown = f"{found.width}×{found.height}, and the image {size[0]}×{size[1]}"
        what = f"{name}: the mask is of {shown}"
        raise DataError(what, where, RLE_FIX)


def _encoded(mask: Rle) -> Any:
    from pycocotools import mask as coco

    found = mask.to_coco()
    return found if isinstance(mask.counts, str) else coco.frPyObjects(found, mask.height, mask.width)


def compressed(found: Segmentation | None) -> Segmentation | None:
    """A mask with its counts as text, which one column of a table can hold; polygons as they are."""
    if not isinstance(found, Rle) or isinstance(found.counts, str):
        return found
    return replace(found, counts=_encoded(found)["counts"].decode("ascii"))


def _array(mask: Rle) -> NDArray[np.uint8]:
    """1 where the object is, ``(height, width)``."""
    runs = _runs(mask.counts) if isinstance(mask.counts, str) else mask.counts
    inside = np.arange(len(runs), dtype=np.uint8) % 2
    return np.repeat(inside, runs).reshape(mask.width, mask.height).T


def rle_of(mask: Any) -> Rle:
    """The encoding of an array ``(height, width)`` that is true where the object is."""
    from pycocotools import mask as coco

    height, width = mask.shape
    return Rle(height, width, coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii"))


def require_drawable(size: tuple[int, int], where: str) -> None:
    """Refuse to draw masks of images that are too large to be opened.

    Raises:
        DataError: naming the size.
    """
    if size[0] * size[1] > MAX_IMAGE_PIXELS:
        what = f"the image is said to have {size[0]}×{size[1]} pixels, too many for a mask"
        raise DataError(what, where, "correct its size")


def holed(outer: tuple[Ring, ...], holes: tuple[Ring, ...], size: tuple[int, int]) -> Rle:
    """Polygons without the polygons inside of them, as a mask of an image of this width and height."""
    inside, outside = (_array(Rle(size[1], size[0], _drawn(rings, size))) for rings in (outer, holes))
    return rle_of(inside & ~outside)


def _drawn(rings: tuple[Ring, ...], size: tuple[int, int]) -> str:
    """Compressed counts of polygons."""
    from pycocotools import mask as coco

    counts: bytes = coco.merge(coco.frPyObjects([*map(list, rings)], size[1], size[0]))["counts"]
    return counts.decode("ascii")


def placed(mask: Any, left: int, top: int, size: tuple[int, int]) -> Rle:
    """A mask of a part of an image, as one of all of it.

    Args:
        mask: ``(height, width)``, true where the object is.
        left: column of the image that it begins in.
        top: likewise its row.
        size: width and height of the image; what lies outside is cut off.
    """
    whole = np.zeros((size[1], size[0]), dtype=np.uint8)
    x, y = max(0, left), max(0, top)
    part = np.asarray(mask)[y - top : max(0, size[1] - top), x - left : max(0, size[0] - left)]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return rle_of(whole)


def union(parts: Sequence[Segmentation], size: tuple[int, int] | None) -> Segmentation | None:
    """Several polygons and masks as one object's; None if there are none, or masks of no known size."""
    masks = [part for part in parts if isinstance(part, Rle)]
    if len(parts) == 1 or not masks:
        rings = (part for part in parts if isinstance(part, tuple))
        return masks[0] if masks else tuple(chain.from_iterable(rings)) or None
    from pycocotools import mask as coco

    width, height = size or (masks[0].width, masks[0].height)
    if any((mask.width, mask.height) != (width, height) for mask in masks):
        return None
    masks += [Rle(height, width, _drawn(part, (width, height))) for part in parts if isinstance(part, tuple)]
    return Rle(height, width, coco.merge([*map(_encoded, masks)])["counts"].decode("ascii"))


def extent(found: Segmentation) -> Box | None:
    """The box around polygons or a mask; None around an empty mask."""
    if isinstance(found, Rle):
        from pycocotools import mask as coco

        x, y, width, height = map(float, coco.toBbox(_encoded(found)))
        return (x, y, x + width, y + height) if width and height else None
    x1, y1 = (min(min(ring[axis::2]) for ring in found) for axis in (0, 1))
    x2, y2 = (max(max(ring[axis::2]) for ring in found) for axis in (0, 1))
    return x1, y1, x2, y2


def fits(around: Box | None, box: Box, slack: float = FIT) -> bool:
    """Whether a box is that of its polygon or mask, whose extent is ``around``."""
    return around is not None and all(abs(a - b) <= slack for a, b in zip(around, box, strict=True))


def moved(
    found: Segmentation | None, change: Callable[[Image.Image], Image.Image], move: Move
) -> Segmentation | None:
    """Polygons whose corners move, or a mask that changes as the image does."""
    if isinstance(found, Rle):
        return rle_of(np.asarray(change(Image.fromarray(_array(found) * np.uint8(255)))) >= 128)
    return found and tuple(tuple(chain.from_iterable(map(move, ring[0::2], ring[1::2]))) for ring in found)


def cut(found: Segmentation | None, size: tuple[int, int]) -> Segmentation | None:
    """What of polygons lies in an image of this width and height; None for none, masks as they are.

    Sutherland and Hodgman's algorithm (1974): what is cut in two stays connected along the edge.

    Example:
        >>> cut(((-5.0, 0.0, 5.0, 0.0, 5.0, 10.0, -5.0, 10.0),), (20, 20))
        ((0.0, 0.0, 5.0, 0.0, 5.0, 10.0, 0.0, 10.0),)
    """
    if found is None or isinstance(found, Rle):
        return found
    rings = []
    for ring in found:
        points = list(zip(ring[0::2], ring[1::2], strict=True))
        for axis, side in enumerate(size):
            points = _half(points, axis, 0.0, 1)
            points = _half(points, axis, float(side), -1)
        if len(points) >= 3:
            rings.append(tuple(chain.from_iterable(points)))
    return tuple(rings) or None


def _half(points: list[tuple[float, float]], axis: int, edge: float, sign: int) -> list[tuple[float, float]]:
    """The part of a polygon on one side of a line along an axis."""
    kept: list[tuple[float, float]] = []
    for at, point in enumerate(points):
        before = points[at - 1]
        a, b = (sign * (own[axis] - edge) for own in (before, point))
        if (a < 0) != (b < 0):
            other = before[1 - axis] + (point[1 - axis] - before[1 - axis]) * a / (a - b)
            kept.append((edge, other) if axis == 0 else (other, edge))
        if b >= 0:
            kept.append(point)
    return kept
