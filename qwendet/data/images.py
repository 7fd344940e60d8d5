"""Images: a path inside the data root becomes an upright RGB image, or an error that says why not.

    "images/a.jpg" ─► resolve_image ─► Path ─► open_image ─► RGB, as displayed (EXIF orientation applied)
                                            └► inspect_image ─► ImageFacts, as a rule without decoding
                             bytes of a file ─► decode_image ─► RGB, as displayed

Files are untrusted input: only the formats below are tried (Pillow's EPS reader, for one, starts another
program), and a header that promises too many pixels is refused before any is decoded.
"""

from __future__ import annotations

import io
import os
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from qwendet.data.archives import Stored, file_at, identity, num_bytes
from qwendet.data.image_bytes import decoded_without_end, must_be_decoded, unreadable_kind
from qwendet.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
)
"""Lower-case endings by which a folder's images are known; what a file is, its bytes say."""
MAX_IMAGE_PIXELS = 89_478_485
"""256 MiB of RGB: where Pillow warns of a decompression bomb. Here more is refused, whatever its setting."""
MIN_IMAGE_SIDE = 2
"""Pixels; a 1×1 image is a placeholder of a failed download, not a photograph."""
MAX_ASPECT_RATIO = 200
"""Long side over short side; the published resizers refuse more."""

ABSENT_FIX = "correct the path, or name the folder that it starts from: data.root in a config, or --image-dir"
SENSOR_BITS = (8, 10, 12, 14, 16)
"""Of cameras, microscopes, X-ray and thermal images; 16-bit files hold any of them."""
HOT_PIXELS = 1000
"""Of as many, one may be brighter than its sensor's range as the others show it: it becomes white."""
MOST_ALPHA_OF_NOTHING = 1
"""Of 255, where no pixel has more: a channel that was never filled, or holds 0 and 1 instead of 0 and 255."""
TURNED_ORIENTATIONS = frozenset({5, 6, 7, 8})
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
"""Texts in a PNG, which nobody reads here: Photoshop and ComfyUI write megabytes, and Pillow allows one."""
# What Pillow's readers raise on broken files.
BROKEN_FILE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class AbsentImageError(DataError):
    """There is no file where the image should be."""


class ForbiddenImageError(DataError):
    """The image's file may not be read."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of an image without its pixels.

    Attributes:
        size: displayed width and height in pixels, EXIF orientation applied.
        is_turned: orientation swaps the sides between the stored and the displayed image.
        path: the real path of its file.
        file_id: equal for every path and hard link that leads to the same file.
    """

    size: tuple[int, int]
    is_turned: bool
    path: str
    num_bytes: int
    file_id: tuple[int, ...]


def resolve_image(image: str, root: Path, where: str) -> Stored:
    """Find an image's file, whose path must stay inside the data root, and may go on inside a tar there.

    Links on the way are followed wherever they lead: who can make one in the data set's folder has put it
    there, as the Hugging Face cache does. A path that is written in a file cannot lead out: an absolute one,
    and one that leaves ``root`` by ``..``, are refused, naming ``where`` (file and line).
    """
    if PurePath(image).is_absolute() and PurePath(image).anchor != str(root):
        raise DataError(
            f"the image path {image!r} is absolute, expected one relative to {root}",
            where,
            "write it relative to data.root, and set data.root to a folder that holds every image",
        )
    try:
        home = root.resolve()
        path = Path(os.path.normpath(home / image))
        leaves_root = not path.is_relative_to(home)
        found = None if leaves_root else file_at(path)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL, a name too long
        raise DataError(
            f"the image path {image!r} cannot be followed ({error})", where, "correct the path"
        ) from error
    if leaves_root:
        raise DataError(
            f"the image path {image!r} leaves the data root {home}",
            where,
            "copy or link the image into the root, or set data.root to a folder that holds every image",
        )
    if found is None:
        what = "not a regular file" if path.exists() else "no such file"
        raise AbsentImageError(
            f"the image {image!r} is absent ({what}: {path})", where, _fix_of_absent(image, path)
        )
    return found


def _fix_of_absent(image: str, path: Path) -> str:
    near = _lookalikes(path.parent).get(_normalised(path.name))
    if near is not None and near != path.name:
        is_same_to_the_eye = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", path.name)
        shown = ascii(near) if is_same_to_the_eye else repr(near)
        return f"write {shown}, as the file is named, or rename it"
    if "\\" in image:
        return "write / between folders"
    return ABSENT_FIX


def _normalised(name: str) -> str:
    """What names have in common that differ in case, or in the unicode form that another system writes."""
    return unicodedata.normalize("NFC", name).casefold()


@lru_cache(maxsize=4)
def _lookalikes(folder: Path) -> dict[str, str]:
    """Names of a folder's files by how they read; a data set may lack all of its images."""
    try:
        return {_normalised(file.name): file.name for file in folder.iterdir()}
    except OSError:  # there is no such folder: nothing in it looks alike
        return {}


def open_image(
    image: str, root: Path, where: str, declared_size: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an image into RGB as displayed, no orientation left to apply.

    EXIF (or XMP) orientation is applied. Transparent pixels are composited on white, unless all are
    transparent. Palette, greyscale, CMYK and 16-bit images are converted; of 16 bits the upper 8 of those
    that are used count (a sensor's 12, say), of colour the upper 8. Of an animation the first frame counts.

    A file that is no image, truncated, too large, too small, too narrow, of a pixel type without a defined
    white, or of another size than ``declared_size`` is refused, naming ``where`` (file and line).
    """
    rgb, stored_size = _upright(resolve_image(image, root, where), image, where)
    if declared_size is not None and declared_size != rgb.size:
        raise _size_error(declared_size, rgb.size, stored_size, image, where)
    return rgb


def decode_image(content: bytes, name: str, where: str) -> Image.Image:
    """As :func:`open_image`, of a file that is in memory; ``name`` stands in errors."""
    return _upright(content, name, where)[0]


def _upright(source: Stored | bytes, image: str, where: str) -> tuple[Image.Image, tuple[int, int]]:
    """The image as displayed, and its size as stored."""
    with _opened(source, image, where) as stored:
        stored_size = stored.size
        upright = _loaded(stored, source, image, where)
        ImageOps.exif_transpose(upright, in_place=True)
        return _to_rgb(upright), stored_size


def image_size(image: str, root: Path, where: str) -> tuple[int, int]:
    """Displayed width and height in pixels; raises as :func:`inspect_image`."""
    return inspect_image(image, root, where).size


def inspect_image(image: str, root: Path, where: str, *, decode: bool = False) -> ImageFacts:
    """Read an image's displayed size and see that its file is whole, decoding only where needed.

    JPEG, PNG and WebP carry an end mark or their length, and orientation in front of the pixels. A file
    without these, or of another format, is decoded to find out. Without ``decode``, pixel data that is broken
    yet complete passes.
    """
    file = resolve_image(image, root, where)
    with _opened(file, image, where) as stored:
        width, height = stored.size
        # Decoding also settles whether the file is whole, and turns a TIFF by itself.
        if decode or must_be_decoded(stored, file) or _is_deep_colour(stored):
            exif = _loaded(stored, file, image, where).getexif()
        else:
            # Of the base class: the PNG reader's own decodes the whole file where it finds no EXIF.
            exif = Image.Image.getexif(stored)
        turned = exif.get(ExifTags.Base.Orientation) in TURNED_ORIENTATIONS
    size = (height, width) if turned else (width, height)
    return ImageFacts(size, turned, str(file), num_bytes(file), identity(file))


@contextmanager
def _opened(source: Stored | bytes, image: str, where: str) -> Iterator[Image.Image]:
    """Open an image's header; what Pillow raises until the block ends becomes a DataError."""
    try:
        with Image.open(_file_of(source), formats=FORMATS) as stored:
            _check_size(stored.size, image, where)
            _check_mode(stored, image, where)
            yield stored
    except UnidentifiedImageError as error:
        found, fix = unreadable_kind(source)
        what = f"{image!r} is not an image: expected one of {', '.join(FORMATS)}, got {found}"
        raise DataError(what, where, fix) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(image, where) from error
    except PermissionError as error:
        raise ForbiddenImageError(
            f"the image {image!r} may not be read", where, f"chmod +r {source!s}"
        ) from error
    except BROKEN_FILE_ERRORS as error:
        raise DataError(
            f"the image {image!r} is truncated or broken ({error})", where, "fetch or export the file again"
        ) from error


def _file_of(source: Stored | bytes) -> Path | BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return source if isinstance(source, Path) else source.open()


def _check_size(size: tuple[int, int], image: str, where: str) -> None:
    """Refuse what cannot be decoded safely or resized by Qwen's processor."""
    width, height = size
    if width * height > MAX_IMAGE_PIXELS:
        raise _too_large(image, where)
    if min(size) < MIN_IMAGE_SIDE:
        raise DataError(
            f"the image {image!r} is too small: {width}×{height}, "
            f"expected at least {MIN_IMAGE_SIDE}×{MIN_IMAGE_SIDE} pixels",
            where,
            "replace the file or remove the sample",
        )
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise DataError(
            f"the image {image!r} is too narrow: {width}×{height}, the long side is more than "
            f"{MAX_ASPECT_RATIO} times the short one, which the model's resizer refuses",
            where,
            "crop or pad the image",
        )


def _check_mode(stored: Image.Image, image: str, where: str) -> None:
    """Refuse pixel types whose black and white no standard defines, such as 32-bit integers and floats."""
    is_16_bit = stored.mode.startswith("I;16") or (stored.format, stored.mode) == ("PPM", "I")
    if stored.mode not in EIGHT_BIT_MODES and not is_16_bit:
        raise DataError(
            f"the image {image!r} has pixels of Pillow mode {stored.mode}, expected 8 or 16 bits a channel",
            where,
            "export it as an 8-bit PNG or JPEG",
        )


def _too_large(image: str, where: str) -> DataError:
    return DataError(
        f"the image {image!r} is too large: its header promises more than {MAX_IMAGE_PIXELS:,} pixels",
        where,
        "shrink it and its boxes; if it is no such picture, it is broken or a decompression bomb: remove it",
    )


def _size_error(
    declared: tuple[int, int], displayed: tuple[int, int], stored: tuple[int, int], image: str, where: str
) -> DataError:
    what = (
        f"the image {image!r} is declared {declared[0]}×{declared[1]} but is displayed "
        f"{displayed[0]}×{displayed[1]} (width×height)"
    )
    if declared == stored:
        return DataError(
            f"{what}: the declared size is that of the file before its EXIF orientation is applied",
            where,
            "give width, height and boxes in the frame of the image as displayed",
        )
    return DataError(what, where, "correct width and height, and see that the boxes fit the image")


def _loaded(stored: Image.Image, source: Stored | bytes, image: str, where: str) -> Image.Image:
    """Decode an image just opened; a JPEG that lacks nothing but its end mark is whole."""
    is_deep = _is_deep_colour(stored)
    try:
        stored.load()
    except OSError:
        whole = decoded_without_end(stored, source) if stored.format in ("JPEG", "MPO") else None
        if whole is None:
            raise
        return whole
    if is_deep and _brightest(np.asarray(stored.convert("RGB"))) < 16:
        raise DataError(
            f"the image {image!r} is nearly black: of the 16 bits of its colours at most 12 are used",
            where,
            "scale its values to 16 bits, or export it with 8",
        )
    return stored


def _is_deep_colour(stored: Image.Image) -> bool:
    """Whether an image just opened has colours of 16 bits, of which Pillow keeps the upper 8 alone."""
    tiles = stored.tile if isinstance(stored, ImageFile.ImageFile) else []
    return stored.mode in ("LA", "RGB", "RGBA") and any(";16" in str(tile.args) for tile in tiles)


def _to_rgb(upright: Image.Image) -> Image.Image:
    """Convert any accepted mode to RGB, transparent pixels on white."""
    if upright.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling: nearly everything would be white.
        pixels = np.asarray(upright)
        scaled = pixels >> _shift(_brightest(pixels))
        upright = Image.fromarray(np.minimum(scaled, 255).astype(np.uint8))
    if upright.has_transparency_data:
        layers = upright.convert("RGBA")
        if np.asarray(layers.getchannel("A")).max() > MOST_ALPHA_OF_NOTHING:
            return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), layers).convert("RGB")
        return layers.convert("RGB")  # tools that leave alpha empty mean no transparency
    return upright.convert("RGB")


def _brightest(values: npt.NDArray[np.integer[Any]]) -> int:
    """The largest value, hot pixels apart: one in a thousand, and one at least, may have a larger one.

    Example:
        >>> _brightest(np.array([40, 65_535, 90, 12]))
        90
    """
    hot = max(1, values.size // HOT_PIXELS)
    return int(np.partition(values, -hot - 1, axis=None)[-hot - 1])


def _shift(most: int) -> int:
    """Bits to drop of the values of an image: its sensor's beyond 8, by the largest value that it has.

    Example:
        >>> _shift(65_535), _shift(4_095), _shift(900)
        (8, 4, 2)
    """
    return next((bits for bits in SENSOR_BITS if most < 1 << bits), SENSOR_BITS[-1]) - 8
