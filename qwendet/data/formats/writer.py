"""What every writer does: take annotated images one by one, and say which files they became."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from qwendet.data.samples import Turn
from qwendet.data.segmentation import Rle, Segmentation


class Writer(ABC):
    """Writes a data set of one format into a folder, split by split or mixed.

    Args:
        folder: an empty folder.
        has_images: images are placed in the folder, else they stay where they are.

    Attributes:
        files: those that are open; it closes them if writing ends early.
        labels: number of each label, from 0: declared ones first, others as they come.
    """

    def __init__(self, folder: Path, *, has_images: bool = True) -> None:
        self.folder = folder
        self.files = ExitStack()
        self.has_images = has_images
        self.labels: dict[str, int] = {}

    def number_of(self, label: str) -> int:
        """A label's number."""
        return self.labels.setdefault(label, len(self.labels))

    def place(self, split: str, name: str) -> str:
        """Where an image of this name goes, relative to the folder."""
        return f"images/{name}"

    @abstractmethod
    def add(self, split: str, turn: Turn, image: str) -> None:
        """Write an image's annotations.

        Args:
            split: its split.
            turn: its size and objects.
            image: its name, or, where images stay where they are, its path relative to their root.
        """

    @abstractmethod
    def finish(self) -> list[str]:
        """Write what comes last; the files that a user opens, relative to the folder."""


class SplitFiles:
    """One text file a split, opened when its first line comes."""

    def __init__(self, folder: Path, pattern: str, stack: ExitStack) -> None:
        self._folder = folder
        self._pattern = pattern
        self._files: dict[str, TextIO] = {}
        self._stack = stack

    def path(self, split: str) -> Path:
        """The file of a split."""
        return self._folder / self._pattern.format(split)

    def write(self, split: str, text: str) -> None:
        """Append to the file of a split."""
        if split not in self._files:
            path = self.path(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file name that is not UTF-8 becomes JSON's own escapes.
            opened = path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
            self._files[split] = self._stack.enter_context(opened)
        self._files[split].write(text)

    def close(self) -> list[str]:
        """Close the files; returns the splits."""
        for file in self._files.values():
            file.close()
        return list(self._files)


def number(value: float) -> int | float:
    """A coordinate as it is written: whole numbers without ``.0``.

    Example:
        >>> number(3.0), number(3.5)
        (3, 3.5)
    """
    return int(value) if value == int(value) else value


def as_coco(found: Segmentation) -> Any:
    """Polygons or a mask as COCO writes them."""
    return found.to_coco() if isinstance(found, Rle) else found
