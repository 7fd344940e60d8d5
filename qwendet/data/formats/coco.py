"""COCO data sets, image by image as written; boxes become corners."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwendet.data.formats.coco_layout import CocoFile, end_in, find_coco, image_folder, on_disk
from qwendet.data.formats.coco_table import CocoImage, CocoTable, Key, read_table
from qwendet.data.formats.fitting import join_image
from qwendet.data.formats.records import Finding, Item, Labels, Record, Source, or_problems
from qwendet.data.images import IMAGE_SUFFIXES
from qwendet.data.samples import Turn, require_absent
from qwendet.errors import DataError
from qwendet.files import list_folder


def open_coco(path: Path, image_dir: Path | None = None, *, may_be_absent: bool = False) -> Source:
    """Open a COCO data set."""
    layout = find_coco(path)
    root = image_dir or layout.root

    def items() -> Iterator[Item]:
        named: set[str] = set()
        for file in layout.files:
            seek = image_dir is not None
            yield from _read_file(file, root, named, may_be_absent=may_be_absent, seek=seek)
        for ignored in layout.ignored:
            yield Finding("unlisted", str(ignored), "not the annotation file of a split")
        for other in layout.other_tasks:
            yield Finding("other_task", str(other))
        if path.is_dir() and not layout.ignored:  # of one file among several, the others name the rest
            yield from _unnamed(root, named)

    return Source(root, 0, items())


def coco_images(path: Path) -> tuple[Path, dict[str, Key], dict[str, Key]]:
    """The folder of a COCO file's images, the ids of images by their paths in it, and those of labels.

    Raises:
        DataError: for a file that is broken, and if none of the first images is found.
    """
    layout, table = find_coco(path), read_table(path)
    if table.broken:
        raise DataError.of([*table.broken.values()])
    if not table.images:
        raise DataError('the list "images" is empty', str(path), "give a file that names images")
    names = [image.name for image in table.images.values()]
    folder = image_folder(layout.root, layout.files[0], names, may_be_absent=False)
    found = (on_disk(layout.root / folder, name) or name for name in names)
    paths = (posixpath.normpath(posixpath.join(folder, name)) for name in found)
    labels = {label: key for key, label in reversed(table.labels.items())}
    return layout.root, dict(zip(paths, table.images, strict=True)), labels


def _unnamed(root: Path, named: set[str]) -> Iterator[Finding]:
    """Images beside named ones that no file names."""
    for folder in sorted({posixpath.dirname(image) for image in named}):
        for file in list_folder(root / folder):
            if file.suffix.lower() in IMAGE_SUFFIXES and posixpath.join(folder, file.name) not in named:
                yield Finding("no_annotation", str(file))


def _read_file(
    file: CocoFile, root: Path, named: set[str], *, may_be_absent: bool, seek: bool
) -> Iterator[Item]:
    """Read one annotation file; the paths of its images are added to ``named``.

    With ``seek`` the user named the root, so that leading folders of another machine do not count.
    """
    table = read_table(file.path)
    if seek:
        _rename(table, lambda name: end_in(root, name))
    if not table.images and not table.broken:
        yield Finding("no_split", str(file.path), 'the list "images" is empty')
        return
    names = [image.name for image in table.images.values()]
    folder = image_folder(root, file, names, may_be_absent=may_be_absent)
    _rename(table, lambda name: on_disk(root / folder, name))
    names = [image.name for image in table.images.values()]
    named.update(posixpath.normpath(posixpath.join(folder, name.replace("\\", "/"))) for name in names)
    yield Labels(tuple(dict.fromkeys(table.labels.values())))
    yield from table.findings
    yield from table.problems
    yield from table.broken.values()
    for image, own in table.annotations():
        yield from or_problems(_record(file, folder, table, image, own))


def _rename(table: CocoTable, find: Callable[[str], str | None]) -> None:
    """Name each image as its file is named, unless that is another one's."""
    owners = {image.name: image.name for image in table.images.values()}
    for key, image in table.images.items():
        name = find(image.name.replace("\\", "/"))
        if name is not None and owners.setdefault(name, image.name) == image.name:
            table.images[key] = replace(image, name=name)


def _record(
    file: CocoFile, folder: str, table: CocoTable, entry: CocoImage, own: Sequence[tuple[str, Any]]
) -> Iterator[Record]:
    image = join_image(folder, entry.name, entry.where)
    found = [(table.read(value, where), where) for where, value in own]
    objects = tuple(item for (item, _), _ in found)
    places = tuple(f"{where} ({item.desc})" for (item, _), where in found)
    findings = tuple(finding for (_, repaired), _ in found for finding in repaired)
    absent = None if entry.absent is None else table.named(entry.absent, entry.where)
    require_absent(absent or (), objects, entry.where, "neg_category_ids")
    partial = table.named(entry.partial or (), entry.where)
    turn = Turn(image, objects, entry.width, entry.height, neg_labels=absent, not_exhaustive_labels=partial)
    name = image.removeprefix(f"{folder}/") if folder else image
    yield Record(file.split, turn, entry.where, name, places, findings, size="the size in the file")
