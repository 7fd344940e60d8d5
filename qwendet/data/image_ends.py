"""Is an image file whole? Told by the end mark behind its pixels, without decoding them."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

START_OF_SCAN = 0xDA
END_OF_JPEG = b"\xff\xd9"
JPEG_TAIL_BYTES = 4096
PNG_SIGNATURE_BYTES = 8


def must_be_decoded(path: Path, image_format: str | None) -> bool:
    """Whether header and file ending leave open that the file is whole and which way up it is.

    Args:
        path: a file whose header could be read.
        image_format: Pillow's name of its format.
    """
    if image_format in ("JPEG", "MPO"):
        return not _has_end_of_jpeg(path)
    if image_format == "PNG":
        return not _ends_after_pixels(path)
    if image_format == "WEBP":
        with path.open("rb") as file:
            riff_bytes = int.from_bytes(file.read(8)[4:], "little")
        return path.stat().st_size < riff_bytes + 8
    return True


def _has_end_of_jpeg(path: Path) -> bool:
    """Whether a JPEG's end mark follows its pixels; cameras may append bytes to it.

    The end mark of a thumbnail, which lies in front of the pixels, does not count: a file that was cut
    early may end with it.
    """
    with path.open("rb") as file:
        pixels_at = _start_of_scan(file)
        if pixels_at is None:
            return False
        file.seek(max(pixels_at, path.stat().st_size - JPEG_TAIL_BYTES))
        return END_OF_JPEG in file.read()


def _start_of_scan(file: BinaryIO) -> int | None:
    """Offset of a JPEG's first pixel data; None if its segments do not lead there."""
    offset = 2  # behind the start mark
    while True:
        file.seek(offset)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return None
        if head[1] == 0xFF:  # fill byte
            offset += 1
            continue
        offset += 2 + int.from_bytes(head[2:], "big")
        if head[1] == START_OF_SCAN:
            return offset


def _ends_after_pixels(path: Path) -> bool:
    """Whether a PNG's last pixel chunk is followed by the end mark and nothing else, such as late EXIF."""
    previous = b""
    with path.open("rb") as file:
        file.seek(PNG_SIGNATURE_BYTES)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"IEND":
                return previous == b"IDAT" and len(file.read(4)) == 4
            previous = kind
            file.seek(length + 4, 1)
    return False
