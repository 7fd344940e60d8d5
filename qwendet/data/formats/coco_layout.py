"""Where a COCO data set keeps its annotation files and the images of each.

annotations/instances_{train,val}2017.json + train2017/, val2017/     as published
{train,valid,test}/_annotations.coco.json  + images beside them       Roboflow
name.json                                  + images/, or any folder   one file
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from qwendet.data.formats.fitting import is_absolute
from qwendet.data.formats.records import SPLIT_WORDS, WHOLE, split_of
from qwendet.data.images import IMAGE_SUFFIXES
from qwendet.errors import DataError
from qwendet.files import list_folder, tell_unreadable

PROBED = 20
"""Images that are looked for when the image folder is."""
MAX_GUESSES = 50
"""Folders that are looked into for images."""
BYTES_BEFORE_JSON = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"
"""Byte order marks and blanks."""
OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
"""How COCO's own files without boxes of objects begin; they lie beside ``instances_…``."""


@dataclass(frozen=True, slots=True)
class CocoFile:
    """One annotation file."""

    path: Path
    split: str


@dataclass(frozen=True, slots=True)
class CocoLayout:
    """A COCO data set."""

    root: Path
    files: tuple[CocoFile, ...]
    ignored: tuple[Path, ...] = ()
    other_tasks: tuple[Path, ...] = ()


def is_coco(path: Path) -> bool:
    """Whether a JSON object holds the key ``annotations``; read in pieces, because COCO's own has 450 MB.

    One in UTF-16 counts, so that reading it tells what is wrong with it.
    """
    keys = [key.encode(code) for key in ('"annotations"',) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    seen = b""
    with tell_unreadable(path), path.open("rb") as file:
        if file.read(1 << 10).lstrip(BYTES_BEFORE_JSON)[:1] != b"{":
            return False
        file.seek(0)
        while piece := file.read(1 << 20):
            seen = seen[-max(map(len, keys)) :] + piece
            if any(key in seen for key in keys):
                return True
    return False


def coco_files(folder: Path) -> list[Path]:
    """Annotation files of a folder: in it, in ``annotations/``, or a folder a split."""
    found = [path for path in _json_files(folder) + _json_files(folder / "annotations") if is_coco(path)]
    if found:
        return found
    inner = [child for child in list_folder(folder) if child.is_dir() and split_of(child.name)]
    return [path for child in inner for path in _json_files(child) if is_coco(path)]


def _json_files(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder) if path.suffix.lower() == ".json"]


def find_coco(path: Path) -> CocoLayout:
    """Find the annotation files of a folder, or make a data set of one file."""
    if path.is_file():
        is_beside = path.parent.name == "annotations" or split_of(path.parent.name) is not None
        root = path.parent.parent if is_beside else path.parent
        return CocoLayout(root, (CocoFile(path, _split(path, path.parent) or WHOLE),))
    found = coco_files(path)
    if not found:
        raise DataError(
            "expected COCO annotations, got no .json with the key annotations",
            str(path),
            "give the folder that holds them or their annotations/ folder, or the file itself",
        )
    instances = [file for file in found if "instances" in file.name] or found
    chosen = _one_a_split(instances, path)
    left = [file for file in found if file not in {coco.path for coco in chosen}]
    others = tuple(file for file in left if file.name.startswith(OTHER_TASKS))
    root = path.parent if path.name == "annotations" else path
    return CocoLayout(root, chosen, tuple(file for file in left if file not in others), others)


def _split(file: Path, root: Path) -> str | None:
    """The split that a file's name, or its folder's below the root, speaks of."""
    return split_of(file.stem) or (split_of(file.parent.name) if file.parent != root else None)


def _one_a_split(files: Sequence[Path], root: Path) -> tuple[CocoFile, ...]:
    found: dict[str, Path] = {}
    splits = {_split(file, root) for file in files}
    rest = WHOLE if splits == {None} else "train" if "train" not in splits else None
    for file in files:
        split = _split(file, root) or rest
        if split is None:  # trainval beside train
            continue
        if split in found:
            raise DataError(
                f"two annotation files for {split}: {found[split].name} and {file.name}",
                str(root),
                "give one of the files instead of the folder",
            )
        found[split] = file
    return tuple(CocoFile(file, split) for split, file in found.items())


def image_folder(root: Path, coco: CocoFile, names: Sequence[str], *, may_be_absent: bool) -> str:
    """The folder that a file's image names start from, relative to the root."""
    probed = [name.replace("\\", "/") for name in names[:PROBED]]
    if all(map(is_absolute, probed)):  # those are reported one by one
        return ""
    usual = _usual_folders(root, coco)
    for folders in (usual, _other_folders(root, usual)):
        hits = {
            folder: sum(on_disk(root / folder, name) is not None for name in probed) for folder in folders
        }
        if any(hits.values()):
            return max(folders, key=lambda folder: hits[folder])
    if not may_be_absent:
        places = ", ".join(folder or "." for folder in usual)
        raise DataError(
            f"found none of the first images ({names[0]!r}, …) in any of: {places}",
            f"{coco.path}: images",
            "name their folder with --image-dir; the end of file_name is looked for in it",
        )
    return next((folder for folder in usual if folder and (root / folder).is_dir()), "")


def _other_folders(root: Path, usual: Sequence[str]) -> list[str]:
    """Folders of any name, but for hidden ones: what is being written may be among those."""
    names = [child.name for child in list_folder(root) if child.is_dir()]
    return [name for name in names if name not in usual][:MAX_GUESSES]


def on_disk(folder: Path, name: str) -> str | None:
    """An image's name as its file has it: decoded if it is that of a URL, its ending added if it has none.

    Returns:
        None if there is no such file below the folder.
    """
    plain = unquote(name)
    readings = [name] if plain == name else [name, plain]
    if PurePosixPath(plain).suffix.lower() not in IMAGE_SUFFIXES:
        readings += [plain + ending for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())]
    # Path's own raises for a name that is too long, or holds a NUL.
    return next((name for name in readings if os.path.isfile(folder / name)), None)  # noqa: PTH113


def end_in(root: Path, name: str) -> str | None:
    """The longest end of a path that is there, as :func:`on_disk` finds it."""
    parts = name.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)) if ".." not in parts[start:])
    found = (on_disk(root, end) for end in ends if end and not is_absolute(end))
    return next((name for name in found if name), None)


def _usual_folders(root: Path, coco: CocoFile) -> list[str]:
    """Folders to look into, relative to the root; each once."""
    home = root.resolve()
    beside = coco.path.parent.resolve()
    own = beside.relative_to(home).as_posix() if beside.is_relative_to(home) else "."
    own = "" if own in (".", "annotations") else own
    stem = coco.path.stem.rpartition("_")[2]
    names = list(dict.fromkeys([stem, *SPLIT_WORDS.get(coco.split, ())]))
    guesses = [own, f"{own}/images" if own else "images", "", *names, *(f"images/{name}" for name in names)]
    there = [guess for guess in dict.fromkeys(guesses) if not guess or (root / guess).is_dir()]
    return there if "annotations" in own or not (root / "annotations").is_dir() else [*there, "annotations"]
