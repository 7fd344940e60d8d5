"""Images decoded and resized once: a bounded folder of raw pixels, named by what they were made of.

    file's bytes + limits + resizer ─► SHA-256 ─► FOLDER/ab/cdef….safetensors: (H, W, 3) bytes, displayed size

A changed image or setting has another name, so nothing stale is ever read. An entry appears by a rename when
it is whole: workers and runs may share the folder, and a kill leaves at most a hidden file that nobody reads.
When the folder is full it takes no more. Passes over the data go round in the same images, so to drop the
oldest for the newest would mean that none is found again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qwendet.files import atomic_file

logger = logging.getLogger("qwendet")

FORMAT = 1
WRITES_BETWEEN_COUNTS = 32
"""Other processes write too; after so many of its own a process counts the folder again."""


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
        self._bytes = -1  # not counted yet
        self._writes = 0

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
        """Keep an image, if the folder has room."""
        if self._bytes < 0 or self._writes % WRITES_BETWEEN_COUNTS == 0:
            self._bytes = sum(entry.stat().st_size for entry in self.folder.glob("*/*.safetensors"))
        if self._bytes + image.pixels.nbytes > self.most_bytes:
            return
        width, height = image.displayed_size
        with atomic_file(self._path(name)) as path:
            save_file({"pixels": image.pixels}, path, {"width": str(width), "height": str(height)})
            self._bytes += path.stat().st_size
        self._writes += 1

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name[2:]}.safetensors"
