"""``qwendet serve``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qwendet.cli.infer import LabelsOption
from qwendet.cli.options import (
    ForeignOption,
    ModelArgument,
    RecordFormatOption,
    SetOption,
    command_line,
    split_labels,
)
from qwendet.console import console
from qwendet.errors import ConfigError, EnvironmentLacksError
from qwendet.serve.limits import Limits

DEFAULT = Limits()
HostOption = Annotated[
    str, typer.Option("--host", help="Where to listen; other than loopback needs a token.")
]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token", envvar="QWENDET_TOKEN", help="Bearer token that clients must send; others see it in ps."
    ),
]
BodyOption = Annotated[int, typer.Option("--max-body", metavar="MB", min=1, help="Most of one request.")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Longest that a request may take.")
]
QueueOption = Annotated[
    int, typer.Option("--queue", metavar="N", min=1, help="Images that may wait; more are refused with 503.")
]
UrlOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-url", metavar="PREFIX", help="Fetch images of URLs that begin so; else none. Repeatable."
    ),
]


def serve(
    model: ModelArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    token: TokenOption = None,
    labels: LabelsOption = None,
    max_body: BodyOption = DEFAULT.body_megabytes,
    timeout: TimeoutOption = DEFAULT.seconds,
    queue: QueueOption = DEFAULT.waiting,
    allow_url: UrlOption = None,
    config: ForeignOption = None,
    output_format: RecordFormatOption = "human",
    settings: SetOption = None,
) -> None:
    """Answer over HTTP: /detect, OpenAI's chat route, /health, /metrics, and a page to try it."""
    wanted = split_labels(labels)
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        what, fix = "expected a token of ASCII letters, digits and signs", "give such a one, or unset it"
        raise ConfigError(what, "--token, QWENDET_TOKEN", fix)
    try:
        from qwendet.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        what, fix = f"{error.name} is not installed", "pip install 'qwendet[serve]'"
        raise EnvironmentLacksError(what, "qwendet serve", fix) from error
    from qwendet.config.load import load_config

    def ready(url: str, origin: dict[str, Any]) -> None:
        further = command_line("check-served", url, "--checkpoint", str(model))
        if console.is_for_machine():
            console.print_record({"url": url, "model": origin, "next": further})
            return
        console.say(
            f"Serving {model} at {url}; Ctrl-C or SIGTERM ends it when what was accepted is answered."
        )
        console.next_step(further)

    run_server(
        model,
        host=host,
        port=port,
        token=token,
        limits=Limits(max_body, timeout, queue, tuple(allow_url or ())),
        labels=wanted,
        overrides=settings or (),
        given=None if config is None else load_config(config),
        ready=ready,
    )
