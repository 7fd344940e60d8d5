"""What annotation tools draw becomes records: images are found by their names, shapes give boxes.

a tool's file ─► its reader ─► Drawn(image, shapes) ─► the image on disk, the extent of each shape ─► Record
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from qwendet.data.formats.drawn import DECIMALS, OUTLINES, Drawn, Point, Reader, Shape
from qwendet.data.formats.fitting import join_image, show
from qwendet.data.formats.records import WHOLE, Box, Finding, Item, Record, Source, or_problems, split_of
from qwendet.data.images import IMAGE_SUFFIXES, image_size
from qwendet.data.rows import FLAGS
from qwendet.data.samples import DetectedObject, Turn, check_label
from qwendet.data.segmentation import Segmentation, union
from qwendet.errors import DataError, Problem
from qwendet.files import files_below

SAME_SHAPE = 0.01
"""Share by which the sides of an image resized in proportion may differ from it."""


def open_drawn(
    path: Path, files: Sequence[Path], read: Reader, image_dir: Path | None, *, one_an_image: bool = False
) -> Source:
    """Open files of an annotation tool.

    Args:
        path: the data set, a folder or one of the files.
        files: those to read.
        read: the tool's reader.
        image_dir: the folder that holds the images instead.
        one_an_image: a file's name is that of its image, and says nothing of a split.
    """
    home = path if path.is_dir() else path.parent
    is_beside = path.is_file() and home.name.lower() in ("ann", "annotations")
    home = home.parent if is_beside else home
    images = _Images(image_dir or home, home)

    def items() -> Iterator[Item]:
        splits = [_split(file, home, one_an_image=one_an_image) for file in files]
        rest = "train" if any(splits) and "train" not in splits else WHOLE
        seen = set()
        for file, split in zip(files, splits, strict=True):
            for item in or_problems(read(file)):
                if isinstance(item, Drawn):
                    seen.add(item.split or split or rest)
                    yield from or_problems(images.record(item, file, item.split or split or rest))
                else:
                    yield item
        if WHOLE in seen and len(seen) > 1:
            what = f"some images are of a split ({', '.join(sorted(seen - {WHOLE}))}) and others of none"
            yield Problem(what, str(path), "name the files or folders after train, val or test")
        if path.is_dir():
            yield from images.unnamed()
        if images.num_lacking:
            yield Finding("not_there", f"{images.root}: {images.num_lacking}")

    return Source(images.root, len(files) if one_an_image else 0, items())


def _split(file: Path, home: Path, *, one_an_image: bool) -> str | None:
    """The split that a file's name, or a folder on the way to it, speaks of."""
    names = file.relative_to(home).with_suffix("").parts if file.is_relative_to(home) else (file.stem,)
    return next(filter(None, map(split_of, reversed(names[: len(names) - one_an_image]))), None)


class _Images:
    """The images of a data set by the names that annotations have for them."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root, self.home = root, home
        self.owners: dict[str, str] = {}
        self.num_lacking = 0
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for file in files_below(root, IMAGE_SUFFIXES):
            self.by_stem[file.stem].append(file.relative_to(root).as_posix())

    def record(self, drawn: Drawn, file: Path, split: str) -> Iterator[Record]:
        """The record of an image; none if it may lack, and does."""
        image = self._find(drawn, file)
        if drawn.may_lack and image not in self.owners:
            self.num_lacking += 1
            return
        size, findings = drawn.size, list[Finding]()
        if drawn.in_fractions:
            size, findings = self._whole(image, drawn)
        scale = size if drawn.in_fractions and size else (1, 1)
        objects, places = [], []
        for own in _grouped(drawn.shapes):
            shape = _one(own)
            if not shape.points:
                findings.append(Finding("no_extent", shape.where, shape.kind))
                continue
            label = check_label(shape.label, shape.where, "label")
            place = f"{shape.where} ({label})"
            box = _extent(shape.points, scale)
            if shape.kind != "box":
                findings.append(Finding("derived", place, f"{show(box)} ({shape.kind})"))
            segmentation, flags = _segmentation(own, scale, size), _flags(shape.attributes or {})
            marks = flags["crowd"], flags["difficult"]
            objects.append(DetectedObject(box, label, *marks, segmentation=segmentation))
            places.append(place)
        turn = Turn(image, tuple(objects), *(size or (None, None)))
        name = image.removeprefix("images/")
        yield Record(split, turn, drawn.where, name, tuple(places), tuple(findings))

    def _whole(self, image: str, drawn: Drawn) -> tuple[tuple[int, int] | None, list[Finding]]:
        """The size that fractions are of: the image's own, if it has the shape of the one claimed."""
        if not (self.root / image).is_file():
            return drawn.size, []
        size = image_size(image, self.root, drawn.where)
        if drawn.size in (None, size):
            return size, []
        across, down = (own / claimed for own, claimed in zip(size, drawn.size or size, strict=True))
        if abs(across / down - 1) > SAME_SHAPE:
            return drawn.size, []
        what = "the size is {}×{}, used {}×{} of {!r}".format(*(drawn.size or size), *size, image)
        return size, [Finding("resized", drawn.where, what)]

    def _find(self, drawn: Drawn, file: Path) -> str:
        """An image's path: of the files of its name the one that shares most of the folders.

        Raises:
            DataError: if several do, or it is that of another name; for a path outside of the data set.
        """
        folder = file.parent.relative_to(self.home) if file.is_relative_to(self.home) else Path()
        names = [unquoted for name in (drawn.image, drawn.other_name) for unquoted in (name, unquote(name))]
        found = next(filter(None, (self._called(name, folder) for name in names if name)), [])
        if not found:
            return join_image(folder.as_posix() if self.root == self.home else "", drawn.image, drawn.where)
        best = max(found)
        if sum(other[:2] == best[:2] for other in found) > 1:
            what = f"there are several images of the name {drawn.image!r}, {best[2]!r} among them"
            raise DataError(what, drawn.where, "name the folder of the images with --image-dir")
        owner = self.owners.setdefault(best[2], drawn.image)
        if owner != drawn.image:
            what = f"{drawn.image!r} and {owner!r} would both be the image {best[2]!r}"
            raise DataError(what, drawn.where, "add the other image, or remove one of the two annotations")
        return best[2]

    def _called(self, name: str, folder: Path) -> list[tuple[int, int, str]]:
        """Images of a name, after the folders that they share with it, and with the annotation's place."""
        parts = name.replace("\\", "/").split("/")
        has_ending = Path(parts[-1]).suffix.lower() in IMAGE_SUFFIXES
        images = [
            image.split("/")
            for image in self.by_stem.get(Path(parts[-1]).stem if has_ending else parts[-1], ())
        ]
        return [
            (
                _common(reversed(own[:-1]), reversed(parts[:-1])),
                _common(own[:-1], folder.parts),
                "/".join(own),
            )
            for own in images
            if not has_ending or own[-1] == parts[-1]
        ]

    def unnamed(self) -> Iterator[Finding]:
        """Images beside others that no annotation names."""
        folders = {posixpath.dirname(image) for image in self.owners}
        for images in self.by_stem.values():
            for image in images:
                if image not in self.owners and posixpath.dirname(image) in folders:
                    yield Finding("no_annotation", str(self.root / image))


def _common(left: Iterable[str], right: Iterable[str]) -> int:
    """How many of their first elements are equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _grouped(shapes: Sequence[Shape]) -> Iterable[list[Shape]]:
    """The shapes of each object."""
    objects: dict[tuple[str, str], list[Shape]] = {}
    for index, shape in enumerate(shapes):
        key = ("", str(index)) if shape.group is None else (str(shape.label), f"group {shape.group}")
        objects.setdefault(key, []).append(shape)
    return objects.values()


def _one(own: Sequence[Shape]) -> Shape:
    """The shapes of an object as one."""
    points = [point for shape in own for point in shape.points]
    kind = own[0].kind if len(own) == 1 else f"{len(own)} shapes of group {own[0].group}"
    return replace(own[0], points=points, kind=kind)


def _segmentation(
    own: Sequence[Shape], scale: tuple[int, int], size: tuple[int, int] | None
) -> Segmentation | None:
    """The polygons and masks among the shapes of an object, in pixels."""
    parts: list[Segmentation] = [shape.mask for shape in own if shape.mask is not None]
    for shape in own:
        if shape.kind in OUTLINES and len(shape.points) >= 3:
            ring = chain.from_iterable((x * scale[0], y * scale[1]) for x, y in shape.points)
            parts.append((tuple(ring if scale == (1, 1) else (round(at, DECIMALS) for at in ring)),))
    return union(parts, size)


def _extent(points: Sequence[Point], scale: tuple[int, int]) -> Box:
    xs, ys = zip(*points, strict=True)
    x1, y1, x2, y2 = (
        round(side(own) * by, DECIMALS)
        for side in (min, max)
        for own, by in zip((xs, ys), scale, strict=True)
    )
    return x1, y1, x2, y2


def _flags(attributes: Mapping[str, Any]) -> dict[str, bool]:
    named = {name.lower(): str(value).lower() in ("1", "true", "yes") for name, value in attributes.items()}
    return {flag: any(named.get(name, False) for name in names) for flag, names in FLAGS.items()}
