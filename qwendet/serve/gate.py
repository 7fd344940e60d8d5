"""What every request passes before anything of it is read: token, size, time, number; and what is counted."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Collection

from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwendet.serve.limits import Limits
from qwendet.serve.refusals import RefusedError, response_to

OPEN_ROUTES = frozenset({"/", "/health"})
"""They tell nothing of the model, and need no token."""
LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)
DRAINED = 8
"""Times the allowed size that is read and thrown away: a client reads no answer while it sends."""


class Meters:
    """Counters of one server, as Prometheus reads them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "qwendet_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "qwendet_request_seconds", "From a request's first byte to its answer.", ["route"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120), registry=registry,
        )  # fmt: skip
        self.batches = Histogram(
            "qwendet_batch_size", "Images or chats of a forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("qwendet_waiting", "Images or chats in the queue.", registry=registry)


class Gate:
    """ASGI middleware.

    Args:
        app: what is behind it.
        limits: of size and time.
        most_open: requests with a body that may be open at once.
        token: that clients must bear; ``None`` for none.
        meters: count what passes.
        routes: paths that are counted by their name.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        most_open: int,
        token: str | None,
        meters: Meters,
        routes: Collection[str],
    ) -> None:
        self.app = app
        self._limits = limits
        self._most_open = most_open
        self._token = token
        self._meters = meters
        self._routes = routes
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        refusal = self._refusal(scope)
        counted = refusal is None and scope["method"] == "POST"
        self._open += counted
        try:
            async with asyncio.timeout(self._limits.seconds) as limit:
                if refusal is None:
                    await self.app(scope, self._limited(receive), noted)
                else:
                    await self._drain(receive)
                    await response_to(refusal)(scope, receive, noted)
        except TimeoutError:
            if status or not limit.expired():
                raise
            what = f"there was no answer within {self._limits.seconds:g} s"
            await response_to(RefusedError(504, what, "request", "try again, with less at once"))(
                scope, receive, noted
            )
        finally:
            self._open -= counted
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._meters.requests.labels(route, status).inc()
            self._meters.seconds.labels(route).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        headers, path = Headers(scope=scope), scope["path"]
        if self._token is None:
            # A web page elsewhere can have a name that leads to this machine: the name tells.
            host = headers.get("host", "")
            if not LOOPBACK.fullmatch(host):
                fix = "call it by localhost, or start the server with a token"
                return RefusedError(403, f"the name {host!r} is not this machine's loopback", "Host", fix)
        elif path not in OPEN_ROUTES:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token.encode()):
                fix = "send the header Authorization: Bearer TOKEN"
                return RefusedError(401, "the bearer token is missing or wrong", "Authorization", fix)
        if scope["method"] == "POST" and self._open >= self._most_open:
            return RefusedError(
                503, f"{self._open} requests are open already", "queue", "try again in a moment"
            )
        return None

    def _limited(self, receive: Receive) -> Receive:
        """Count the bytes of the body, and stop where they are too many."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limits.body_bytes:
                await self._drain(receive, message)
                what = f"the request has more than {self._limits.body_megabytes} MB"
                raise RefusedError(413, what, "body", "shrink the image, or send fewer of them at once")
            return message

        return counted

    async def _drain(self, receive: Receive, message: Message | None = None) -> None:
        size = 0
        while (message is None or message.get("more_body")) and size < DRAINED * self._limits.body_bytes:
            message = await receive()
            size += len(message.get("body", b""))


def page_response(html: str) -> Response:
    """A page that loads nothing from elsewhere, and that no other page may frame."""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    return Response(html, media_type="text/html", headers=headers)
