"""How much a client may ask for. Read by ``--help``: nothing here imports what takes time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_megabytes: of one request, and of an image that is fetched.
        seconds: from the first byte of a request to its answer.
        url_prefixes: beginnings of the URLs that are fetched; none are without one.
    """

    body_megabytes: int = 32
    seconds: float = 120.0
    waiting: int = 64
    url_prefixes: tuple[str, ...] = ()
