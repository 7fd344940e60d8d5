"""Where a Pascal VOC data set keeps annotations, images and split lists.

    Annotations/*.xml  JPEGImages/*  ImageSets/Main/{train,val,test}.txt     as published
    annotations/*.xml  images/*, also annots/, xmls/ …; images in any folder  Kaggle
    {train,test}/annotations/*.xml, {train,test}/images/*                    Kaggle, too
    {train,valid,test}/*.xml, images beside them                             Roboflow
    *.xml, images beside them                                                LabelImg

Names of folders and endings count in any case. An image is the file that shares its annotation's stem, in
the same folder below that of the images where ``Annotations`` has folders (CVAT), or the only one of that
name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qwendet.data.formats.records import SPLITS, WHOLE, Finding, split_of
from qwendet.data.images import IMAGE_SUFFIXES
from qwendet.errors import DataError, Problem
from qwendet.files import files_below, list_folder, read_text, tell_unreadable

FLAG_COLUMN = frozenset({"-1", "0", "1"})
ANNOTATION_FOLDERS = ("annotations", "annotation", "annots", "xmls", "xml", "labels")
"""The first one is that of the publication; the others count if an XML in them is an annotation."""
IMAGE_FOLDERS = ("jpegimages", "images")
PROBED = 20
"""Annotations whose image is looked for when the folder of images is."""
XML_SUFFIXES = frozenset({".xml"})
ENDINGS = IMAGE_SUFFIXES | XML_SUFFIXES
ANNOTATION_TAG = re.compile(rb"<(?:\w+:)?annotation\b", re.IGNORECASE)
HEAD_BYTES = 1 << 12
"""Bytes that a comment or a declaration may take before an XML's first element."""


@dataclass(frozen=True, slots=True)
class VocFolder:
    """A folder of annotations and that of their images.

    Attributes:
        annotations: annotation file by stem, which is its path below its folder without the ending.
        images: the folder of the images, relative to the root; empty is the root.
        listed: stems by split; what is in none is left out.
        notes: lists without a line, lines that name an annotation again, or none.
    """

    annotations: Mapping[str, Path]
    images: str
    listed: Mapping[str, Sequence[str]]
    notes: Sequence[Problem | Finding] = ()

    def unlisted(self) -> list[Path]:
        """Annotations that no split list names."""
        listed = {stem for stems in self.listed.values() for stem in stems}
        return [file for stem, file in self.annotations.items() if stem not in listed]


def is_voc(path: Path) -> bool:
    """Whether a folder, or one in it, holds VOC annotations."""
    return bool(_homes(path))


def find_voc(path: Path) -> tuple[Path, tuple[VocFolder, ...]]:
    """The root of a VOC data set, and its folders of annotations."""
    homes = _homes(path)
    if not homes:
        raise DataError(
            "expected a VOC folder (Annotations/*.xml, JPEGImages/), got no annotations (.xml)",
            str(path),
            "give the folder that holds Annotations",
        )
    if path in homes or all(split_of(root.name) for root in homes):
        return path, tuple(_read_folder(path, root, home) for root, home in homes.items())
    if len(homes) > 1:
        names = ", ".join(root.name for root in homes)
        raise DataError(f"expected one VOC folder, got {len(homes)}: {names}", str(path), "give one of them")
    ((root, home),) = homes.items()
    return root, (_read_folder(root, root, home),)


def images_by_stem(folder: Path, *, is_deep: bool) -> Mapping[str, list[str]]:
    """Paths of a folder's image files by path without ending; and below it if ``is_deep`` or it has none."""
    paths: dict[str, list[str]] = defaultdict(list)
    for file in files_below(folder, IMAGE_SUFFIXES) if is_deep else list_folder(folder):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            path = file.relative_to(folder)
            paths[path.with_suffix("").as_posix()].append(path.as_posix())
    return paths if paths or is_deep else images_by_stem(folder, is_deep=True)


def paired(images: Mapping[str, list[str]], stems: Set[str]) -> Mapping[str, list[str]]:
    """Images by the stem of their annotation: their path, with or without ending, or a name that one has."""
    whole = {path: [path] for paths in images.values() for path in paths if path in stems}
    free_of = {
        stem: paths for stem, paths in images.items() if stem in stems or whole.keys().isdisjoint(paths)
    }
    images = {**free_of, **whole}
    left, lone = (
        {name: stem for name, (stem, *more) in _by_name(free).items() if not more}
        for free in (stems - images.keys(), images.keys() - stems)
    )
    return {**images, **{left[name]: images[lone[name]] for name in left.keys() & lone.keys()}}


def _by_name(stems: Iterable[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for stem in stems:
        found[PurePosixPath(stem).name].append(stem)
    return found


def _homes(path: Path) -> dict[Path, Path]:
    """The folder of annotations of ``path``, else those of its children: of splits, if some are.

    A child of another name may hold them in a folder of theirs, and not beside its images.
    """
    if not path.is_dir():
        return {}
    if (home := _annotation_folder(path)) is not None:
        return {path: home}
    children = [child for child in list_folder(path) if child.is_dir()]
    found = {child: home for child in children if (home := _annotation_folder(child)) is not None}
    of_splits = {child: home for child, home in found.items() if split_of(child.name)}
    return of_splits or {child: home for child, home in found.items() if home != child}


def _annotation_folder(root: Path) -> Path | None:
    """Where the annotations of a folder are: in one of the usual names, or in itself."""
    children = {child.name.lower(): child for child in reversed(list_folder(root)) if child.is_dir()}
    published = children.get(ANNOTATION_FOLDERS[0])
    if published is not None and any(files_below(published, XML_SUFFIXES)):
        return published
    others = [children[name] for name in ANNOTATION_FOLDERS[1:] if name in children]
    return next(filter(_holds_annotations, [*others, root]), None)


def _holds_annotations(folder: Path) -> bool:
    """Whether XML files of a folder, which may hold others, are annotations: one says so."""
    files = (file for file in list_folder(folder) if file.suffix.lower() in XML_SUFFIXES)
    return any(ANNOTATION_TAG.search(_head(file)) for file in files)


def _head(file: Path) -> bytes:
    with tell_unreadable(file), file.open("rb") as opened:
        return opened.read(HEAD_BYTES).replace(b"\0", b"")  # of UTF-16, what ASCII would be


def _child(folder: Path, name: str) -> Path:
    """A folder inside another, whatever its case."""
    matching = (child for child in list_folder(folder) if child.name.lower() == name and child.is_dir())
    return next(matching, folder / name)


def _read_folder(path: Path, root: Path, home: Path) -> VocFolder:
    """A folder of annotations: all of the data set ``path``, or of a split of it."""
    files = list_folder(home) if home == root else files_below(home, XML_SUFFIXES)
    annotations = {
        file.relative_to(home).with_suffix("").as_posix(): file
        for file in files
        if file.suffix.lower() in XML_SUFFIXES
    }
    lists = _SplitLists(annotations)
    split = split_of(root.name) if home == root or root != path else None
    listed = {split: list(annotations)} if split else lists.read(_child(root, "imagesets"))
    folder = root if home == root else _image_folder(root, home, list(annotations))
    return VocFolder(annotations, _relative(folder, path), listed, lists.notes)


def _relative(folder: Path, path: Path) -> str:
    return folder.relative_to(path).as_posix().removeprefix(".")


def _image_folder(root: Path, home: Path, stems: Sequence[str]) -> Path:
    """The folder of the images: of the usual names, else the one that holds most."""
    usual = [folder for name in IMAGE_FOLDERS if (folder := _child(root, name)).is_dir()]
    if usual:
        return usual[0]
    probed = {PurePosixPath(stem).name for stem in stems[:PROBED]}
    folders = dict.fromkeys((root, home, *(child for child in list_folder(root) if child.is_dir())))
    hits = {
        folder: sum(
            file.stem in probed for file in list_folder(folder) if file.suffix.lower() in IMAGE_SUFFIXES
        )
        for folder in folders
    }
    best = max(hits, key=lambda folder: hits[folder])
    return best if hits[best] else root / "JPEGImages"


class _SplitLists:
    """Reads the lists of a data set; what they say that cannot be is noted."""

    def __init__(self, annotations: Mapping[str, Path]) -> None:
        self.annotations = annotations
        self.notes: list[Problem | Finding] = []

    def read(self, folder: Path) -> dict[str, list[str]]:
        """Stems of each split, in the order of the lists.

        ``trainval`` stands in for an absent ``train``. Where only lists of single classes are there, such as
        ``dog_train.txt``, which name every image of the split, those count; without any, folders of the
        names of splits do.
        """
        home = folder / "Main" if (folder / "Main").is_dir() else folder
        files = {file.stem: file for file in list_folder(home) if file.suffix == ".txt"}
        found = {name: self._stems([files[name]]) for name in SPLITS if name in files}
        both = self._stems([files["trainval"]]) if "trainval" in files and "train" not in found else []
        if both:
            validation = set(found.get("val", ()))
            found = {"train": [stem for stem in both if stem not in validation], **found}
        if not found:
            of_classes = {split: [files[n] for n in files if split_of(n) == split] for split in SPLITS}
            found = {
                split: self._stems(some, are_of_classes=True) for split, some in of_classes.items() if some
            }
        return {split: stems for split, stems in found.items() if stems} or self._by_folder()

    def _by_folder(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for stem in self.annotations:
            found[split_of(stem.rpartition("/")[0]) or WHOLE].append(stem)
        return {WHOLE: list(self.annotations)} if WHOLE in found else found

    def _stems(self, files: Sequence[Path], *, are_of_classes: bool = False) -> list[str]:
        """Read lists: a name a line, perhaps followed by a flag (-1, 0 or 1)."""
        stems: dict[str, int] = {}
        for file in files:
            text = read_text(file)
            if not text.strip():
                self.notes.append(Finding("no_split", str(file), "the split list is empty"))
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    self._add(stems, line, number, f"{file}:{number}", are_of_classes=are_of_classes)
        return list(stems)

    def _add(
        self, stems: dict[str, int], line: str, number: int, where: str, *, are_of_classes: bool
    ) -> None:
        stem = self._name_in(line)
        if stem not in self.annotations:
            what = f"{stem!r} has no Annotations/{stem}.xml"
            self.notes.append(Problem(what, where, "add the annotation or remove the line"))
        elif stem not in stems:
            stems[stem] = number
        elif not are_of_classes:
            self.notes.append(Finding("listed_again", where, f"{stem!r}, as in line {stems[stem]}"))

    def _name_in(self, line: str) -> str:
        """The name in a line without flag or ending; a name may hold blanks, at its ends too."""
        name, *flags = line.rsplit(maxsplit=1)
        plain = name.strip() if FLAG_COLUMN.issuperset(flags) else line.strip()
        file = PurePosixPath(plain.replace("\\", "/"))
        bare = (file.with_suffix("").as_posix(), file.stem) if file.suffix.lower() in ENDINGS else ()
        readings = (line, line.strip(), plain, *bare)
        return next((reading for reading in readings if reading in self.annotations), plain)
