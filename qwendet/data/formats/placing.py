"""Images put beside what was converted: a name for each, then a copy or a link."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from qwendet.data.archives import Member
from qwendet.data.characters import as_unicode
from qwendet.data.images import resolve_image
from qwendet.errors import DataError

Placement = Literal["copy", "link", "reference"]


class Names:
    """A name in UTF-8 for each image, so that no two overwrite each other, nor their annotations.

    Two images clash where their paths differ only in case or ending.

    Args:
        flat: leave folders out of the names.
        by_split: an image is placed once in each of its splits, instead of once.
    """

    def __init__(self, *, flat: bool = False, by_split: bool = False) -> None:
        self._flat = flat
        self._by_split = by_split
        self._given: dict[tuple[str, str], str] = {}
        self._taken: set[tuple[str, str]] = set()

    def give(self, split: str, image: str, wanted: str) -> str:
        """The name of an image; the wanted one unless another image has it.

        Args:
            split: the image's split.
            image: where it is now: the same image gets the same name.
            wanted: a relative path.

        Example:
            >>> names = Names()
            >>> names.give("train", "a/1.jpg", "1.jpg"), names.give("val", "b/1.png", "1.png")
            ('1.jpg', '1-2.png')
        """
        scope = split if self._by_split else ""
        if (scope, image) not in self._given:
            wanted = as_unicode(wanted)
            path = PurePosixPath(PurePosixPath(wanted).name if self._flat else wanted)
            name, number = path, 1
            while (scope, _key(name)) in self._taken:
                number += 1
                name = path.with_name(f"{path.stem}-{number}{path.suffix}")
            self._taken.add((scope, _key(name)))
            self._given[scope, image] = name.as_posix()
        return self._given[scope, image]


def _key(path: PurePosixPath) -> str:
    return path.with_suffix("").as_posix().casefold()


def place_images(
    placed: Mapping[str, tuple[str, str]], root: Path, folder: Path, placement: Literal["copy", "link"]
) -> Iterator[int]:
    """Copy or hard-link images; links are hard because symbolic ones would leave the data root."""
    for done, (name, (image, where)) in enumerate(placed.items(), start=1):
        source = resolve_image(image, root, where)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Member):
            target.write_bytes(source.read_bytes())
        elif placement == "copy":
            shutil.copyfile(source, target)
        else:
            _link(source, target, where)
        yield done


def save_image(image: Image.Image, target: Path) -> None:
    """Write pixels of a part of an image, in the format that the name ends with."""
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, quality=95, subsampling=0)


def _link(source: Path, target: Path, where: str) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        raise DataError(
            f"cannot make a hard link to {source} ({error.strerror})",
            where,
            "copy the images instead, or convert into a folder on the same file system",
        ) from error
