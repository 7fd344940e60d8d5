"""Images decoded and resized once: a bounded folder of raw pixels, named by what they were made of.

    file's bytes + limits + resizer ─► SHA-256 ─► FOLDER/ab/cdef….safetensors: (H, W, 3) bytes, displayed size

A changed image or setting has another name, so nothing stale is ever read. An entry appears by a rename when
it is whole: workers and runs may share the folder, and a kill leaves at most a hidden file that nobody reads.
When the folder is full it takes no more. Passes over the data go round in the same images, so to drop the
oldest for the newest would mean that none is found again.

How much the folder holds is in its ledger, to which every process appends what it is about to keep: the
folder is listed once in its life, and no number of workers exceeds the limit. What a killed process did not
get to keep, and what was kept twice or removed, stays counted: who removes images removes the ledger, too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qwendet.errors import DataError
from qwendet.files import atomic_file

logger = logging.getLogger("qwendet")

FORMAT = 2
LEDGER = "ledger"
"""Name of the file of changes to the folder's size: int64 numbers of bytes, as many as there were changes."""


@dataclass(frozen=True)
class CachedImage:
    """A decoded image in the model's size.

    Attributes:
        pixels: ``(H, W, 3)`` uint8, RGB.
        displayed_size: width and height before the resize, pixels.
    """

    pixels: npt.NDArray[np.uint8]
    displayed_size: tuple[int, int]


class ImageCache:
    """The folder.

    Args:
        folder: made when the first image is kept.
        gigabytes: the most it holds, in 10⁹ bytes.
        made_by: settings that the pixels depend on.
    """

    def __init__(self, folder: Path, gigabytes: float, made_by: dict[str, object]) -> None:
        self.folder = folder
        self.most_bytes = int(gigabytes * 1e9)
        facts = {"format": FORMAT, "pillow": PIL.__version__, **made_by}
        self._made_by = json.dumps(facts, sort_keys=True).encode()
        self._ledger = folder / LEDGER
        self._bytes = self._read = 0  # what the ledger says as far as it was read, and how far that is

    def name_of(self, file: Path) -> str:
        """What an image file's entry is called: it changes with the file's bytes and the settings."""
        return hashlib.sha256(self._made_by + file.read_bytes()).hexdigest()

    def find(self, name: str) -> CachedImage | None:
        """The image of that name, if it is kept."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                facts = file.metadata()
                return CachedImage(file.get_tensor("pixels"), (int(facts["width"]), int(facts["height"])))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("image cache: %s is broken (%s); it is made anew", path, error)
            path.unlink(missing_ok=True)
            return None

    def keep(self, name: str, image: CachedImage) -> None:
        """Keep an image, if the folder has room.

        Raises:
            DataError: if the folder cannot be written to.
        """
        width, height = image.displayed_size
        content = save({"pixels": image.pixels}, {"width": str(width), "height": str(height)})
        try:
            has_room = self._reserve(len(content))
        except OSError as error:
            what = f"cannot write ({error.strerror})"
            raise DataError(what, str(self._ledger), "choose another place") from error
        if has_room:
            with atomic_file(self._path(name)) as path:
                path.write_bytes(content)

    def _reserve(self, num_bytes: int) -> bool:
        """Whether there is room for so many bytes, which are then counted."""
        if self._total() + num_bytes > self.most_bytes:
            return False
        self._append(num_bytes)
        fits = self._total() <= self.most_bytes  # others may have appended in between
        if not fits:
            self._append(-num_bytes)
        return fits

    def _total(self) -> int:
        """Bytes that the folder holds, or will in a moment."""
        if not self._ledger.exists():
            self._begin_ledger()
        with self._ledger.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: len(content) // 8 * 8]
        self._read += len(whole)
        self._bytes += sum(array("q", whole))
        return self._bytes

    def _begin_ledger(self) -> None:
        """Count the folder; of several processes that do so one is the first, and the others' counts go."""
        self._bytes = self._read = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = sum(entry.stat().st_size for entry in self.folder.glob("*/*.safetensors"))
        with suppress(FileExistsError):
            self._append(kept, os.O_EXCL)

    def _append(self, change: int, flags: int = 0) -> None:
        descriptor = os.open(self._ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT | flags, 0o666)
        try:
            os.write(descriptor, array("q", [change]).tobytes())
        finally:
            os.close(descriptor)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name[2:]}.safetensors"
