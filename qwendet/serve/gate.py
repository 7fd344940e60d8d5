"""What every request passes before anything of it is read: token and time; and what is counted."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwendet.serve.refusals import RefusedError, response_to

OPEN_ROUTES = frozenset({"/", "/health"})
"""They tell nothing of the model, and need no token."""
LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)


class Meters:
    """Counters of one server, as Prometheus reads them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
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
    """ASGI middleware: ``token`` is ``None`` for none, ``routes`` are the paths that are counted by name."""

    def __init__(
        self, app: ASGIApp, seconds: float, token: str | None, meters: Meters, routes: Collection[str]
    ) -> None:
        self.app = app
        self._seconds, self._token, self._meters, self._routes = seconds, token, meters, routes

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

        try:
            async with asyncio.timeout(self._seconds) as limit:
                if refusal := self._refusal(scope):
                    async for _ in Request(scope, receive).stream():
                        """A client reads no answer while it sends."""
                    await response_to(refusal)(scope, receive, noted)
                else:
                    await self.app(scope, receive, noted)
        except TimeoutError:
            if status or not limit.expired():
                raise
            what = f"there was no answer within {self._seconds:g} s"
            late = RefusedError(504, what, "request", "try again, with less at once")
            await response_to(late)(scope, receive, noted)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._meters.requests.labels(route, status).inc()
            self._meters.seconds.labels(route).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> RefusedError | None:
        headers = Headers(scope=scope)
        if self._token is None:
            # A web page elsewhere can have a name that leads to this machine: the name tells.
            host = headers.get("host", "")
            if not LOOPBACK.fullmatch(host):
                fix = "call it by localhost, or start the server with a token"
                return RefusedError(403, f"the name {host!r} is not this machine's loopback", "Host", fix)
        elif scope["path"] not in OPEN_ROUTES:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token.encode()):
                fix = "send the header Authorization: Bearer TOKEN"
                return RefusedError(401, "the bearer token is missing or wrong", "Authorization", fix)
        return None
