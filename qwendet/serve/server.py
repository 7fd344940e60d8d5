"""Load a model, listen, answer until a signal ends it: what was accepted is finished, the rest refused."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from qwendet.config.schema import Config
from qwendet.errors import ConfigError
from qwendet.inference.predictor import Predictor
from qwendet.serve.app import create_app
from qwendet.serve.limits import Limits

CONNECTIONS_BESIDE = 64
"""Connections that may be open besides those that wait, before uvicorn answers 503 by itself."""


def serve(
    model: Path,
    *,
    host: str,
    port: int,
    token: str | None,
    limits: Limits,
    ready: Callable[[str, dict[str, Any]], None],
    **loading: Any,
) -> None:
    """Serve a model until SIGTERM or SIGINT.

    ``ready`` is called with the address and who trained the model, when calls are taken; ``loading`` are
    further arguments of :meth:`qwendet.Predictor.from_checkpoint`.
    """
    for prefix in limits.url_prefixes:
        parts = urlsplit(prefix)
        if parts.scheme not in ("http", "https") or not parts.netloc or not parts.path:
            fix = "for example --allow-url https://images.example.org/"
            raise ConfigError(f"expected http(s)://HOST/, got {prefix!r}", "--allow-url", fix)
    with bound(host, port) as listening:
        address, port = listening.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback and token is None:
            raise ConfigError(
                f"{host} can be called from other machines, and there is no token",
                "--host",
                "set the environment variable QWENDET_TOKEN, or leave --host out",
            )
        predictor = Predictor.from_checkpoint(model, check=refuse_tiles, **loading)
        app = create_app(predictor, str(model), limits, token)
        most = limits.waiting + CONNECTIONS_BESIDE + 1  # uvicorn counts the one that asks
        quiet: dict[str, Any] = {"log_config": None, "log_level": "error", "access_log": False}
        bare: dict[str, Any] = {"http": "h11", "ws": "none", "proxy_headers": False, "server_header": False}
        server = uvicorn.Server(uvicorn.Config(app, limit_concurrency=most, **quiet, **bare))
        shown = f"[{address}]" if ":" in address else address
        listening.listen()  # who learns the address may call at once
        ready(f"http://{shown}:{port}", predictor.bundle.origin())
        # uvicorn raises the signal that ended it once more when all is answered: that is no error here.
        with suppress(KeyboardInterrupt, SystemExit):
            server.run(sockets=[listening])


def refuse_tiles(config: Config) -> None:
    """Refuse ``infer.tiles``, which a server does not honour.

    Raises:
        ConfigError: naming what does.
    """
    if config.infer.tiles != "off":
        what = f"infer.tiles is {config.infer.tiles}, but a server looks at whole images alone"
        fix = "add --set infer.tiles=off; qwendet infer looks at windows"
        raise ConfigError(what, "infer.tiles", fix)


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as unless_bound:
            made = unless_bound.enter_context(socket.socket(family, kind, protocol))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            unless_bound.pop_all()
    except OSError as error:
        what = f"cannot listen at {host}, port {port} ({error.strerror})"
        fix = "take another with --port, 0 for any that is free, or another --host"
        raise ConfigError(what, "--host, --port", fix) from error
    return made
