"""Is an image file whole? Told by the end mark behind its pixels, without decoding them."""

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
