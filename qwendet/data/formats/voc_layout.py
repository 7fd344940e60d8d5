"""Where a Pascal VOC data set keeps annotations, images and split lists.

    Annotations/*.xml  JPEGImages/*  ImageSets/Main/{train,val,test}.txt     as published
    annotations/*.xml  images/*                                              Kaggle
    {train,valid,test}/*.xml, images beside them                             Roboflow
    *.xml, images beside them                                                LabelImg

Names of folders and endings count in any case. An image is the file that shares its annotation's stem.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwendet.data.formats.records import SPLITS, WHOLE, split_of
from qwendet.data.images import IMAGE_SUFFIXES
from qwendet.errors import DataError
from qwendet.files import list_folder

FLAG_COLUMN = frozenset({"-1", "0", "1"})
IMAGE_FOLDERS = ("jpegimages", "images")


@dataclass(frozen=True, slots=True)
class VocFolder:
    """A folder of annotations and that of their images.

    Attributes:
        annotations: annotation file by stem.
        images: the folder of the images, relative to the root; empty is the root.
        listed: stems by split; what is in none is left out.
    """

    annotations: Mapping[str, Path]
    images: str
    listed: Mapping[str, Sequence[str]]

    def unlisted(self) -> list[Path]:
        """Annotations that no split list names."""
        listed = {stem for stems in self.listed.values() for stem in stems}
        return [file for stem, file in self.annotations.items() if stem not in listed]


def is_voc(path: Path) -> bool:
    """Whether a folder, or one in it, holds VOC annotations."""
    return bool(_roots(path))


def find_voc(path: Path) -> tuple[Path, tuple[VocFolder, ...]]:
    """The root of a VOC data set, and its folders of annotations.

    Args:
        path: the root, or its parent where that holds no other.

    Raises:
        DataError: if there is none, or more than one; for broken split lists.
    """
    roots = _roots(path)
    if not roots:
        raise DataError(
            "expected a VOC folder (Annotations/*.xml, JPEGImages/), got no annotations (.xml)",
            str(path),
            "give the folder that holds Annotations",
        )
    if len(roots) > 1:
        names = ", ".join(root.name for root in roots)
        raise DataError(f"expected one VOC folder, got {len(roots)}: {names}", str(path), "give one of them")
    root = roots[0]
    if _xml_files(_child(root, "annotations")):
        return root, (_published(root),)
    if _xml_files(root):
        return root, (_beside(root, root, split_of(root.name) or WHOLE),)
    return root, tuple(_beside(root, child, split) for child, split in _split_folders(root))


def images_by_stem(folder: Path) -> Mapping[str, list[str]]:
    """Names of the image files in a folder, by name without ending."""
    names: dict[str, list[str]] = defaultdict(list)
    for file in list_folder(folder):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            names[file.stem].append(file.name)
    return names


def _roots(path: Path) -> list[Path]:
    """``path`` if it holds annotations itself, else its children that do."""
    if not path.is_dir():
        return []
    if _xml_files(_child(path, "annotations")) or _xml_files(path) or _split_folders(path):
        return [path]
    return [
        child for child in list_folder(path) if child.is_dir() and _xml_files(_child(child, "annotations"))
    ]


def _split_folders(root: Path) -> list[tuple[Path, str]]:
    found = [(child, split_of(child.name)) for child in list_folder(root) if child.is_dir()]
    return [(child, split) for child, split in found if split and _xml_files(child)]


def _child(folder: Path, name: str) -> Path:
    """A folder inside another, whatever its case."""
    matching = (child for child in list_folder(folder) if child.name.lower() == name and child.is_dir())
    return next(matching, folder / name)


def _xml_files(folder: Path) -> list[Path]:
    return [
        file
        for file in list_folder(folder)
        if file.suffix.lower() == ".xml" and not file.name.startswith(".")
    ]


def _by_stem(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in _xml_files(folder)}


def _beside(root: Path, folder: Path, split: str) -> VocFolder:
    annotations = _by_stem(folder)
    images = "" if folder == root else folder.name
    return VocFolder(annotations, images, {split: list(annotations)})


def _published(root: Path) -> VocFolder:
    annotations = _by_stem(_child(root, "annotations"))
    folders = [_child(root, name) for name in IMAGE_FOLDERS]
    images = next((folder.name for folder in folders if folder.is_dir()), "JPEGImages")
    return VocFolder(annotations, images, _splits(_child(root, "imagesets") / "Main", annotations))


def _splits(lists: Path, annotations: Mapping[str, Path]) -> dict[str, list[str]]:
    """Stems of each split, in the order of the lists; ``trainval`` stands in for an absent ``train``."""
    found = {
        name: _read_split(file, annotations)
        for name in (*SPLITS, "trainval")
        if (file := lists / f"{name}.txt").is_file()
    }
    both = found.pop("trainval", None)
    if both is not None and "train" not in found:
        validation = set(found.get("val", ()))
        found = {"train": [stem for stem in both if stem not in validation], **found}
    return found or {WHOLE: list(annotations)}


def _read_split(file: Path, annotations: Mapping[str, Path]) -> list[str]:
    """Read one split list: a name a line, perhaps followed by a flag (-1, 0 or 1)."""
    stems: dict[str, int] = {}
    for number, line in enumerate(_read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        stem = _listed_name(line.strip(), annotations)
        if stem not in annotations:
            raise DataError(
                f"{stem!r} has no Annotations/{stem}.xml", where, "add the annotation or remove the line"
            )
        if stem in stems:
            raise DataError(f"{stem!r} is listed twice (line {stems[stem]})", where, "remove one line")
        stems[stem] = number
    if not stems:
        raise DataError("the split list is empty", str(file), "remove the file, or list annotations in it")
    return list(stems)


def _listed_name(line: str, annotations: Mapping[str, Path]) -> str:
    """The name in a line without its flag; a name may hold blanks."""
    name, *flags = line.rsplit(maxsplit=1)
    return name if line not in annotations and FLAG_COLUMN.issuperset(flags) else line


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the file as UTF-8 text ({error})", str(file)) from error
