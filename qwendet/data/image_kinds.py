"""What a file is that is read as no image: recognised by its first bytes, never opened by another reader."""

from __future__ import annotations

import io

from qwendet.data.archives import Stored

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


def unreadable_kind(source: Stored | bytes) -> tuple[str, str]:
    """What a file is that none of the readers takes, and how to mend it."""
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
