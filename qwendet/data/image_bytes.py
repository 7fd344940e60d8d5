"""What the bytes of an image file say without decoding it: whether it is whole, and what it is instead."""

from __future__ import annotations

import io

from PIL import Image, ImageFile

from qwendet.data.archives import Stored, num_bytes

END_OF_JPEG, END_OF_PNG = b"\xff\xd9", b"\0\0\0\0IEND\xaeB`\x82"
TAIL_BYTES = 1 << 16
LATE_ORIENTATION = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
"""Chunks of a PNG that may tell, behind the pixels, which way up they are."""
FILLINGS = tuple(pattern * 2048 for pattern in (b"", b"\x55", b"\xaa", b"\x3c\xc3", b"\xf0\x0f\x99"))
"""What is put behind a JPEG without end."""
HEAD_BYTES = 1 << 10
TIFF = "a TIFF whose channels or bits are not read, or whose header is broken"
KINDS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftyphei", "an HEIC image"),
    (4, b"ftyphev", "an HEIC image"),
    (4, b"ftypmif1", "an HEIF image"),
    (4, b"ftyp", "a film (MP4 or alike)"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"II*\0", TIFF),
    (0, b"MM\0*", TIFF),
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\x93NUMPY", "an array of numpy"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (128, b"DICM", "a DICOM image"),
    (0, b"\0\x05\x16\x07", "what a Mac notes beside an image (AppleDouble)"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a GZIP archive"),
    (0, b"version https://git-lfs", "a pointer of Git LFS (git lfs pull fetches the image)"),
)
"""Offset and bytes there, in which order they are tried."""
TEXTS = ((b"<svg", "an SVG drawing"), (b"<html", "a web page"), (b"<!doctype html", "a web page"))


def must_be_decoded(stored: Image.Image, file: Stored) -> bool:
    """Whether header and end of a file leave open that it is whole and which way up it is.

    The end mark of a JPEG counts behind its header alone, which may hold a thumbnail with one of its own;
    cameras may append bytes to it.

    Args:
        stored: the image, just opened: read up to its pixels.
        file: its file.
    """
    header = stored.fp.tell() if isinstance(stored, ImageFile.ImageFile) and stored.fp else 0
    with file.open("rb") as opened:
        if stored.format == "WEBP":
            return num_bytes(file) < int.from_bytes(opened.read(8)[4:], "little") + 8
        opened.seek(max(header, num_bytes(file) - TAIL_BYTES))
        tail = opened.read()
    if stored.format in ("JPEG", "MPO"):
        return END_OF_JPEG not in tail
    is_whole_png = stored.format == "PNG" and tail.endswith(END_OF_PNG)
    return not is_whole_png or any(chunk in tail for chunk in LATE_ORIENTATION)


def decoded_without_end(stored: Image.Image, source: Stored | bytes) -> Image.Image | None:
    """A JPEG that lacks its end mark, decoded if its pixels are all there; network cameras write such files.

    They are if what stands behind the last byte does not matter: where pixels are missing, it would be taken
    for them. Of a progressive one a whole scan may be missing.
    """
    if "progressive" in stored.info:
        return None
    data = (source if isinstance(source, bytes) else source.read_bytes()).rstrip(b"\xff")
    images = [Image.open(io.BytesIO(data + tail + END_OF_JPEG), formats=["JPEG"]) for tail in FILLINGS]
    is_whole = all(image.tobytes() == images[0].tobytes() for image in images[1:])
    return images[0] if is_whole else None


def unreadable_kind(source: Stored | bytes) -> tuple[str, str]:
    """What a file is that none of the readers takes, and how to fix it."""
    replace = "replace the file or remove the sample"
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if not head:
            return "an empty file", replace
    found = next((what for at, mark, what in KINDS if head.startswith(mark, at)), None)
    found = found or next((what for mark, what in TEXTS if mark in head.lower()), None)
    if found == TIFF:
        return found, "export 1, 3 or 4 channels of 8 bits, or one of 16, as PNG or TIFF"
    if found is None:
        return "something else, or a file cut in its header", replace
    return found, "convert it to PNG or JPEG" if found.endswith("image") else replace
