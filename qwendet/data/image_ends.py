"""Is an image file whole? Told by the end mark behind its pixels, without decoding them."""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import Image

from qwendet.data.archives import Stored, num_bytes

START_OF_SCAN = b"\xda"
END_OF_JPEG = b"\xff\xd9"
JPEG_TAIL_BYTES = 4096
FILLINGS = tuple(pattern * 2048 for pattern in (b"", b"\x55", b"\xaa", b"\x3c\xc3", b"\xf0\x0f\x99"))
"""What is put behind a JPEG without end."""
FRAMES = frozenset({b"\xc0", b"\xc1", b"\xc2"})
PNG_SIGNATURE_BYTES = 8


def must_be_decoded(file: Stored, image_format: str | None) -> bool:
    """Whether header and file ending leave open that the file is whole and which way up it is."""
    if image_format in ("JPEG", "MPO"):
        return not _has_end_of_jpeg(file)
    if image_format == "PNG":
        return not _ends_after_pixels(file)
    if image_format == "WEBP":
        with file.open("rb") as opened:
            riff_bytes = int.from_bytes(opened.read(8)[4:], "little")
        return num_bytes(file) < riff_bytes + 8
    return True


def _has_end_of_jpeg(stored: Stored) -> bool:
    """Whether a JPEG's end mark follows its pixels; cameras may append bytes to it.

    The end mark of a thumbnail, which lies in front of the pixels, does not count: a file that was cut
    early may end with it.
    """
    with stored.open("rb") as file:
        pixels_at = _start_of_scan(file)
        if pixels_at is None:
            return False
        file.seek(max(pixels_at, num_bytes(stored) - JPEG_TAIL_BYTES))
        return END_OF_JPEG in file.read()


def decoded_without_end(source: Stored | bytes) -> Image.Image | None:
    """A JPEG that lacks its end mark, decoded if its pixels are all there; network cameras write such files.

    They are if the last scan is there and what stands behind the last byte does not matter: where pixels
    are missing, it would be taken for them.
    """
    data = (source if isinstance(source, bytes) else source.read_bytes()).rstrip(b"\xff")
    if not _has_all_scans(data):
        return None
    images = [Image.open(io.BytesIO(data + tail + END_OF_JPEG), formats=["JPEG"]) for tail in FILLINGS]
    is_whole = all(image.tobytes() == images[0].tobytes() for image in images[1:])
    return images[0] if is_whole else None


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG give every coefficient in full, those of a progressive one among them.

    ITU-T T.81, B.2.3: a scan names its components, the coefficients from Ss to Se, and the bit Al down to
    which they are given.
    """
    left: dict[tuple[int, int], int] = {}
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        kind, size = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        if kind == START_OF_SCAN and body and len(body) == 2 * body[0] + 4:
            first, last, bits = body[-3:]
            scanned = [
                (body[1 + 2 * each], place) for each in range(body[0]) for place in range(first, last + 1)
            ]
            left |= dict.fromkeys(scanned, bits & 15)
        elif kind in FRAMES and len(body) >= 6:
            left |= {(body[6 + 3 * each], place): 16 for each in range(body[5]) for place in range(64)}
        is_segment = kind and (0xC0 <= kind[0] <= 0xFE) and not 0xD0 <= kind[0] <= 0xD9
        at += 2 + size if is_segment else 2
    return bool(left) and not any(left.values())


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
        if head[1:2] == START_OF_SCAN:
            return offset


def _ends_after_pixels(stored: Stored) -> bool:
    """Whether a PNG's last pixel chunk is followed by the end mark and nothing else, such as late EXIF."""
    previous = b""
    with stored.open("rb") as file:
        file.seek(PNG_SIGNATURE_BYTES)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"IEND":
                return previous == b"IDAT" and len(file.read(4)) == 4
            previous = kind
            file.seek(length + 4, 1)
    return False
