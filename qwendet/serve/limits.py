"""How much a client may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from qwendet.data.images import MAX_IMAGE_PIXELS

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_megabytes: of one request.
        pixels: of one image.
        seconds: from the first byte of a request to its answer.
        waiting: images that may wait while others are computed, and requests that may be open besides.
        url_prefixes: beginnings of the URLs that are fetched; none are without one.
    """

    body_megabytes: int = 32
    pixels: int = MAX_IMAGE_PIXELS
    seconds: float = 120.0
    waiting: int = 64
    url_prefixes: tuple[str, ...] = ()

    @property
    def body_bytes(self) -> int:
        """Bytes of one request."""
        return self.body_megabytes * MEGABYTE
