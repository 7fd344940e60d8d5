"""How much a client may ask for. Read by ``--help``: nothing here imports what takes time."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_megabytes: of one request.
        pixels: of one image; ``None`` leaves what any image may have (``data.images.MAX_IMAGE_PIXELS``).
        seconds: from the first byte of a request to its answer.
        waiting: images that may wait while others are computed, and requests that may be open besides.
        url_prefixes: beginnings of the URLs that are fetched; none are without one.
    """

    body_megabytes: int = 32
    pixels: int | None = None
    seconds: float = 120.0
    waiting: int = 64
    url_prefixes: tuple[str, ...] = ()

    @property
    def body_bytes(self) -> int:
        """Bytes of one request."""
        return self.body_megabytes * MEGABYTE
