"""`qwendet serve` as a process: it starts, answers, and stops when all is answered; what it refuses."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.commands import Qwendet

pytestmark = pytest.mark.slow

PNG = {"Content-Type": "image/png"}


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    Image.new("RGB", (120, 90), "white").save(tmp_path / "image.png")
    return (tmp_path / "image.png").read_bytes()


@contextmanager
def server(*words: str) -> Iterator[tuple[subprocess.Popen[str], http.client.HTTPConnection]]:
    """A server of the embedded model, and a connection to it."""
    command = [sys.executable, "-m", "qwendet", "serve", "tiny", "--port", "0", "--format", "json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = list(iter(process.stdout.readline, "}\n"))
            place = urlsplit(json.loads("".join(lines) + "}")["url"])
            connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=300)
            yield process, connection
        finally:
            process.kill()


def metrics(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def busy(connection: http.client.HTTPConnection) -> int:
    """Batches that the model has been asked for."""
    return int(float(metrics(connection).partition("qwendet_batch_size_count ")[2].split()[0]))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_serve__a_signal_ends_it_when_what_was_accepted_is_answered(
    image: bytes, number: signal.Signals
) -> None:
    slow = "/detect?mode=text"
    with server("--set", "infer.max_new_tokens=600") as (process, connection):
        other = http.client.HTTPConnection(connection.host, connection.port, timeout=300)
        other.request("POST", slow, image, PNG)
        while busy(connection) == 0:
            time.sleep(0.01)
        process.send_signal(number)
        answer = other.getresponse()
        assert (answer.status, json.loads(answer.read())["width"]) == (200, 120)
        other.close()
        connection.close()
        assert process.wait(300) == 0
        with pytest.raises(ConnectionRefusedError):
            other.connect()
        assert process.stderr is not None
        (said,) = process.stderr.read().splitlines()
        assert said.startswith("device: ")


def test_serve__who_hangs_up_leaves_the_queue(image: bytes) -> None:
    """One while it sends, one while it waits; the third is answered, and nobody is told of a bug."""
    with server("--set", "infer.max_new_tokens=600") as (process, connection):
        others = [http.client.HTTPConnection(connection.host, connection.port) for _ in range(4)]
        others[3].request("POST", "/detect", image, PNG | {"Content-Length": "999999"})
        others[0].request("POST", "/detect?mode=text", image, PNG)
        while busy(connection) == 0:
            time.sleep(0.01)
        for other in others[1:3]:
            other.request("POST", "/detect?mode=head", image, PNG)
        waiting(connection, 2)
        others[1].close()
        others[3].close()
        waiting(connection, 1)
        assert others[2].getresponse().status == 200
        assert busy(connection) == 2
        told = metrics(connection)
        for other in [*others, connection]:
            other.close()
        process.terminate()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert 'qwendet_requests_total{route="/detect",status="499"} 2.0' in told


def waiting(connection: http.client.HTTPConnection, number: int) -> None:
    """Wait until so many images are in the queue."""
    for _ in range(1000):
        if f"qwendet_waiting {number}.0" in metrics(connection):
            return
        time.sleep(0.01)
    raise AssertionError(f"there were never {number} in the queue")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], ("0.0.0.0 can be called from other machines", "QWENDET_TOKEN")),
        (["--host", "no such host"], ("cannot listen at no such host, port 8000", "--port")),
        (["--token", ""], ("expected a token of ASCII letters", "unset it")),
        (["--token", "schlüssel"], ("expected a token of ASCII letters", "QWENDET_TOKEN")),
        (["--allow-url", "example.org"], ("expected http(s)://HOST/, got 'example.org'", "https://")),
        (["--allow-url", "https://example.org"], ("got 'https://example.org'", "--allow-url")),
        (["--set", "infer.mode=tail"], ("infer.mode", "'tail'")),
        (["--set", "infer.tiles=auto"], ("a server looks at whole images alone", "--set infer.tiles=off")),
        (["--queue", "0"], ("it should be greater than or equal to 1", "see: qwendet serve --help")),
    ],
)  # fmt: skip
def test_serve__mistakes_are_2(qwendet: Qwendet, words: list[str], told: tuple[str, ...]) -> None:
    ending = qwendet("serve", "tiny", *words)
    assert (ending.code, ending.out) == (2, "")
    assert [part for part in told if part not in ending.err] == []


def test_serve__a_port_in_use_is_2(qwendet: Qwendet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ending = qwendet("serve", "nowhere/run", "--port", port)
    assert ending.code == 2
    assert f"cannot listen at 127.0.0.1, port {port} (Address already in use)" in ending.err
    assert "0 for any that is free" in ending.err


def test_serve__no_checkpoint_is_2(qwendet: Qwendet, tmp_path: Path) -> None:
    ending = qwendet("serve", tmp_path, "--port", "0")
    assert (ending.code, ending.out) == (2, "")
    assert str(tmp_path) in ending.err


def test_serve__costs_other_commands_no_import() -> None:
    listed = "import sys, qwendet.cli.main; print({'fastapi', 'uvicorn', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client"])
def test_serve__the_extra_is_named(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in [*sys.modules]:
        if module.startswith("qwendet.serve.") and module != "qwendet.serve.limits":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    ending = qwendet("serve", "tiny")
    assert ending.code == 3
    assert f"{name} is not installed" in ending.err
    assert "pip install 'qwendet[serve]'" in ending.err


def test_serve__tells_where_it_is_and_what_to_try(qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwendet.serve import server as module

    told: list[Any] = []
    monkeypatch.setenv("QWENDET_TOKEN", "sesame")

    def run(*_: Any, ready: Any, **options: Any) -> None:
        told.append(options)
        ready("http://127.0.0.1:8000", {"trained_by": "qwendet"})

    monkeypatch.setattr(module, "serve", run)
    ending = qwendet("serve", "run/final", "--labels", "a,b", "--queue", "3")
    assert ending.code == 0
    assert "Serving run/final at http://127.0.0.1:8000; Ctrl-C or SIGTERM ends it" in ending.err
    assert ending.err.splitlines()[-1].startswith("Next: qwendet check-served http://127.0.0.1:")
    assert (told[0]["token"], told[0]["labels"], told[0]["limits"].waiting) == ("sesame", ("a", "b"), 3)
