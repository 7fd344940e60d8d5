"""The images of a YOLO data set and the label file of each, found also where its paths are another machine's.

The labels of ``…/images/…/a.jpg`` are in ``…/labels/…/a.txt``, in ``labels/`` beside the image's folder, or
beside the image.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from qwendet.data.formats.fitting import join_image
from qwendet.data.formats.records import Finding, split_of
from qwendet.data.images import IMAGE_SUFFIXES
from qwendet.errors import DataError, Problem
from qwendet.files import files_below, read_text

LABEL_FOLDERS = {"images": "labels", "Images": "Labels", "IMAGES": "LABELS", "JPEGImages": "labels"}
"""By the folder of images; that of labels is named as it is. Darknet knows ``JPEGImages``, too."""
SIBLINGS = ("labels", "Labels", "LABELS")
TEXT_SUFFIXES = frozenset({".txt"})
HEAD_BYTES = 1 << 12
NUMBERS = re.compile(rb"(?<!\S)[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?(?!\S)")
FEWEST_NUMBERS = 4
"""Of a line of labels, one of them missing; ``classes.txt`` may name digits."""


@dataclass(frozen=True, slots=True)
class EntryImages:
    """The images of a folder or a list.

    Attributes:
        names: by path relative to the root, what the list calls the image; its own path for a folder.
    """

    names: dict[str, str]
    notes: list[Problem | Finding] = field(default_factory=list)


def tails(entry: str) -> Iterator[str]:
    """What a path may mean below the data set's folder.

    Roboflow's ``../train/images`` lies one folder lower than it says, CVAT's ``data/`` is another program's
    folder, and of a path of another machine the end may be found.

    Example:
        >>> list(tails("../train/images")), list(tails("/content/x/train"))
        (['train/images'], ['content/x/train', 'x/train', 'train'])
        >>> list(tails("../coins/images"))
        ['coins/images', 'images']
    """
    parts = posixpath.normpath(entry.replace("\\", "/")).split("/")
    is_absolute = not parts[0] or parts[0].endswith(":")
    inside = parts[1:] if is_absolute else [part for part in parts if part != ".."]
    for start in range(len(inside)):
        dropped, tail = inside[:start], inside[start:]
        loses_split = any(split_of(folder) for folder in dropped)
        is_telling = len(tail) > 1 or "." in tail[0] or split_of(tail[0]) is not None
        if not loses_split or (is_absolute and is_telling):  # "images" of "../test/images" may be another's
            yield "/".join(tail)


def first_there(names: Iterable[str], base: str, homes: Sequence[Path]) -> str | None:
    """The first of several paths that is in one of the homes, from its folder ``base`` or from itself."""
    paths = (posixpath.normpath(posixpath.join(folder, name)) for name in names for folder in (base, ""))
    inside = (path for path in paths if not path.startswith(("/", "..")))
    return next((path for path in inside if any((home / path).exists() for home in homes)), None)


def images_of(home: Path, root: Path, entry: str) -> EntryImages:
    """The images of an entry of the settings."""
    listing = home / entry
    if listing.suffix.lower() == ".txt" and listing.is_file():
        return _listed(listing, home, root)
    folder = root / entry
    if not folder.is_dir():
        raise DataError(
            "expected a folder of images, got none", str(folder), "correct the path in the settings"
        )
    found = sorted(file.relative_to(root).as_posix() for file in files_below(folder, IMAGE_SUFFIXES))
    return EntryImages(dict(zip(found, found, strict=True)))


def _listed(listing: Path, home: Path, root: Path) -> EntryImages:
    found = EntryImages({})
    for number, line in enumerate(read_text(listing).splitlines(), start=1):
        name, where = line.strip(), f"{listing}:{number}"
        if not name:
            continue
        try:
            image = _locate(name, listing, home, root, where)
        except DataError as error:
            found.notes.extend(error.problems)
            continue
        if image in found.names:
            found.notes.append(Finding("listed_again", where, repr(name)))
        found.names.setdefault(image, name)
    return found


def _locate(name: str, listing: Path, home: Path, root: Path, where: str) -> str:
    """A listed image's path relative to the root; its leading folders may be those of another machine."""
    beside = listing.parent.relative_to(root).as_posix() if listing.parent.is_relative_to(root) else ""
    alone = [PurePosixPath(name.replace("\\", "/")).name] if root != home else []
    found = first_there([*tails(name), *alone], beside, [root])
    if found is None:
        raise DataError(f"the image {name!r} is nowhere in {root}", where, "add the image or remove the line")
    return join_image("", found, where)


def label_places(root: Path, image: str) -> list[Path]:
    """Where the labels of an image may be, the likeliest first: they ought to be in the first two.

    Example:
        >>> [place.as_posix() for place in label_places(Path(), "Images/train/a.jpg")][:2]
        ['Labels/train/a.txt', 'Images/train/a.txt']
        >>> [place.as_posix() for place in label_places(Path(), "img/a.jpg")][:3]
        ['labels/img/a.txt', 'img/a.txt', 'labels/a.txt']
    """
    parts = PurePosixPath(image).with_suffix(".txt").parts
    at = _image_folder(parts)
    if at is None:
        due, at = PurePosixPath("labels", *parts), len(parts) - 2
    else:
        due = PurePosixPath(*parts[:at], LABEL_FOLDERS[parts[at]], *parts[at + 1 :])
    others = [PurePosixPath(*parts[:at], name, *parts[at + 1 :]) for name in SIBLINGS if at >= 0]
    return [root / place for place in dict.fromkeys((due, PurePosixPath(*parts), *others))]


def _image_folder(parts: tuple[str, ...]) -> int | None:
    """Which folder of a path is that of images."""
    folders = [index for index, part in enumerate(parts[:-1]) if part in LABEL_FOLDERS]
    return folders[-1] if folders else None


def labels_without_image(home: Path, entry: str, seen: set[Path]) -> list[Path]:
    """Label files of an entry's folder that no image asked for; texts of another kind are passed over."""
    places = [place.parent for place in label_places(home, f"{entry}/x.jpg")]
    folders = [folder for folder in places if folder != places[1] and folder.is_dir()]
    if (home / entry).suffix == ".txt" or not folders:
        return []
    files = files_below(folders[0], TEXT_SUFFIXES)
    return sorted(file for file in files if file not in seen and _holds_labels(file))


def _holds_labels(file: Path) -> bool:
    """Whether a text may be a label file: it is empty, or begins with numbers; names and lists do not."""
    with file.open("rb") as opened:
        line = opened.read(HEAD_BYTES).strip().partition(b"\n")[0]
    return not line or len(NUMBERS.findall(line)) >= FEWEST_NUMBERS
