"""An annotation held against its image: whose size counts, and where a box that leaves the image is cut."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qwendet.data.characters import ESCAPED_BYTES, unseen_character
from qwendet.data.formats.records import (
    MEASURED,
    Box,
    Finding,
    FindingKind,
    Item,
    Record,
    Source,
    or_problems,
)
from qwendet.data.images import inspect_image
from qwendet.data.samples import DetectedObject
from qwendet.data.segmentation import cut, extent, fits, require_size
from qwendet.errors import DataError

ROUNDING = 0.01
"""Pixels by which rounding in an annotation file may move an edge; not worth telling."""
MAX_OVERHANG = 1.0
"""Pixels by which tools that count from one let a box leave its image."""
SLIGHT = 0.02
"""Share of the shorter side by which a box may leave an image whose size nobody claims, and be cut there."""
MIN_SHARE_INSIDE = 0.5
"""Share of a box's area that must lie in the image; with less, the box belongs to another image or frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The image that boxes are given for.

    Attributes:
        is_sure: the boxes are known to be given for this size: the annotation claims it, or they are
            fractions; None if nothing speaks for it or against it.
    """

    width: int
    height: int
    is_sure: bool | None
    findings: tuple[Finding, ...] = ()


def fitted(source: Source, *, may_be_absent: bool) -> Source:
    """A data set whose records are held against their images; those that do not fit become problems."""

    def items() -> Iterator[Item]:
        for item in source.items:
            if isinstance(item, Record):
                yield from or_problems(fit_record(item, source.root, may_be_absent=may_be_absent))
            else:
                yield item

    return replace(source, items=items())


def fit_record(record: Record, root: Path, *, may_be_absent: bool) -> Iterator[Record]:
    """Hold one annotated image against the image itself: boxes end up inside it and with area.

    Raises:
        DataError: for a box that no cut at the edge makes sense of.
    """
    frame = _frame(record, root, may_be_absent=may_be_absent)
    findings = [*record.findings, *frame.findings]
    objects: list[DetectedObject] = []
    seen: set[DetectedObject] = set()
    for where, item in zip(record.places, record.turn.objects, strict=True):
        box, finding = fit_box(item.bbox_2d, frame, where)
        findings += [finding] if finding else []
        if box is None:
            continue
        found = replace(item, bbox_2d=box)
        if item.segmentation is not None:
            found, further = _fit_segmentation(found, frame, where)
            findings += further
        if found in seen:
            findings.append(Finding("repeated", where, show(box)))
        seen.add(found)
        objects.append(found)
    turn = replace(record.turn, objects=tuple(objects), width=frame.width, height=frame.height)
    yield replace(record, turn=turn, places=(), findings=tuple(findings))


def join_image(folder: str, name: str, where: str) -> str:
    """An image's path relative to the data set's root, from what an annotation says.

    Raises:
        DataError: if the path is absolute, leaves the root, or holds control characters.

    Example:
        >>> join_image("annotations", "../images/a.jpg", "x")
        'images/a.jpg'
    """
    unseen = unseen_character(ESCAPED_BYTES.sub("", name))
    if unseen is not None:
        what = f"the image name {name!r} holds control characters ({unseen})"
        raise DataError(what, where, "rename the image")
    if "://" in name:
        raise DataError(
            f"the image is a URL ({name!r}), and nothing is downloaded",
            where,
            "fetch the images into a folder, write their paths in it, and name it with --image-dir",
        )
    unified = name.replace("\\", "/")
    joined = posixpath.normpath(posixpath.join(folder, unified))
    fix = "write it relative to the data set's folder, or to one named with --image-dir"
    if is_absolute(unified):
        raise DataError(f"the image path {name!r} is absolute", where, fix)
    if joined.split("/")[0] == "..":
        raise DataError(f"the image path {name!r} leaves the data set's folder", where, fix)
    return joined


def is_absolute(name: str) -> bool:
    """Whether a path starts at a root or a drive, or is a URL: with either separator, on either system."""
    return name.startswith(("/", "\\")) or name[1:3] in (":/", ":\\") or "://" in name


def _frame(record: Record, root: Path, *, may_be_absent: bool) -> Frame:
    """The size that boxes are held against: the image's own, or what is claimed where it is not there.

    Raises:
        DataError: if the image is absent or broken, or the claimed size is that before its EXIF orientation.
    """
    turn, where, image = record.turn, record.where, record.turn.image
    claimed = None if turn.width is None or turn.height is None else (turn.width, turn.height)
    if record.size == MEASURED and claimed:
        return Frame(*claimed, is_sure=True)
    if may_be_absent and not os.path.exists(root / image):  # noqa: PTH110  # Path's raises for long names
        if claimed is None or min(claimed) < 1:
            what = f"the image {image!r} is absent, and the annotation gives no usable size"
            raise DataError(what, where, "add the image")
        finding = Finding("absent", where, f"{image!r} is absent, taken as {claimed[0]}×{claimed[1]}")
        return Frame(*claimed, is_sure=True, findings=(finding,))
    facts = inspect_image(image, root, where)
    size = facts.size
    if claimed is None or claimed == size:
        return Frame(*size, is_sure=None if claimed is None else True)
    shown = f"{record.size} is {claimed[0]}×{claimed[1]}"
    if claimed == size[::-1] and facts.is_turned:
        raise DataError(
            f"{shown}, that of {image!r} before its EXIF orientation is "
            f"applied; displayed it is {size[0]}×{size[1]}, and the boxes would lie elsewhere",
            where,
            "if the boxes were drawn on the unturned image remove its orientation "
            f"(exiftool -Orientation= FILE), else correct {record.size}",
        )
    finding = Finding("resized", where, f"{shown}, used {size[0]}×{size[1]} of {image!r}")
    return Frame(*size, is_sure=False, findings=(finding,))


def _fit_segmentation(item: DetectedObject, frame: Frame, where: str) -> tuple[DetectedObject, list[Finding]]:
    """Cut polygons at their image's edge; masks of another image are left out."""
    size, found = (frame.width, frame.height), item.segmentation
    try:
        require_size(found, size, where, "segmentation")
    except DataError as error:
        return replace(item, segmentation=None), [Finding("unreadable", where, error.problems[0].what)]
    around = None if found is None else extent(found)
    if around is not None and _clip(around, frame)[1]:
        found = cut(found, size)
        item, around = replace(item, segmentation=found), None if found is None else extent(found)
    if found is None:
        return item, [Finding("unreadable", where, "it lies outside of the image")]
    return item, [] if fits(around, item.bbox_2d) else [Finding("misfit", where, show(item.bbox_2d))]


def fit_box(written: Box, frame: Frame, where: str) -> tuple[Box | None, Finding | None]:
    """Cut a box at its image's edge; ``None`` instead of a box without area.

    Raises:
        DataError: if it leaves the image by more than a pixel and either mostly lies outside or may have
            been given for another size; where no size is claimed, by more than 2 % of the image.
    """
    box, overhang = _clip(written, frame)
    if _is_empty(written) or (_is_empty(box) and overhang <= MAX_OVERHANG):
        return None, Finding("zero_area", where, f"{show(written)} has no area, left out")
    if overhang <= ROUNDING:
        return box, None
    is_mostly_inside = _area(box) >= MIN_SHARE_INSIDE * _area(written)
    is_slight = frame.is_sure is None and overhang <= SLIGHT * min(frame.width, frame.height)
    if overhang > MAX_OVERHANG and not ((frame.is_sure or is_slight) and is_mostly_inside):
        raise DataError(
            f"the box {show(written)} leaves the image of {frame.width}×{frame.height} "
            f"by {overhang:.10g} pixels",
            where,
            "correct the box, or see whether the annotation belongs to another image or size",
        )
    kind: FindingKind = "clipped" if overhang <= MAX_OVERHANG else "cut"
    return box, Finding(kind, where, f"{show(written)} cut to {show(box)}")


def _clip(box: Box, frame: Frame) -> tuple[Box, float]:
    """Cut a box at the image's edges; also returns by how many pixels it left, 0 if inside."""
    x1, y1, x2, y2 = box
    right, bottom = float(frame.width), float(frame.height)
    if x1 >= 0 and y1 >= 0 and x2 <= right and y2 <= bottom:
        return box, 0.0
    clipped = (
        min(max(x1, 0.0), right),
        min(max(y1, 0.0), bottom),
        min(max(x2, 0.0), right),
        min(max(y2, 0.0), bottom),
    )
    return clipped, max(abs(old - new) for old, new in zip(box, clipped, strict=True))


def _is_empty(box: Box) -> bool:
    return box[0] >= box[2] or box[1] >= box[3]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def show(box: Box) -> str:
    """A box for people.

    Example:
        >>> show((1.0, 2.5, 3.0, 4.0))
        '[1, 2.5, 3, 4]'
    """
    return f"[{', '.join(f'{value:.10g}' for value in box)}]"
