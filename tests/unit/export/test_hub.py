"""``export --push`` against a stand-in for the hub: one commit, private, of every file."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from qwendet.errors import ConfigError, EnvironmentLacksError
from qwendet.export.hub import push, require_repository


class Hub(ThreadingHTTPServer):
    """Takes one repository; what it was sent stands in ``made`` and ``files``."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def send(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send({"id": "team/cells"}, self.server.status)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status != 200:
            self.send({"error": "You don't have the rights"}, self.server.status)
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self.send({"url": f"{self.server.url}/team/cells"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.send({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.send({"commitUrl": f"{self.server.url}/team/cells/commit/{'1' * 40}", "commitOid": "1" * 40})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "head").mkdir()
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "head" / "detection_head.safetensors").write_bytes(b"weights")
    return tmp_path


def test_push__is_one_private_commit_of_every_file(hub: Hub, folder: Path) -> None:
    commit = push(folder, "team/cells", private=True)
    assert commit == f"{hub.url}/team/cells/commit/{'1' * 40}"
    assert hub.made == {"name": "cells", "organization": "team", "visibility": "private"}
    assert hub.files == {"config.json": b"{}", "head/detection_head.safetensors": b"weights"}


def test_push__that_is_not_allowed_leaves_the_directory(hub: Hub, folder: Path) -> None:
    hub.status = 403
    with pytest.raises(EnvironmentLacksError) as told:
        push(folder, "team/cells", private=True)
    (problem,) = told.value.problems
    assert f"{folder} is written, but not uploaded" in problem.what
    assert problem.fix == f"hf auth login, then: hf upload team/cells {folder}"
    assert (folder / "config.json").is_file()


def test_push__offline_is_told(folder: Path) -> None:
    with pytest.raises(EnvironmentLacksError, match="but not uploaded"):
        push(folder, "team/cells", private=True)


def test_repository__of_no_possible_name_is_refused() -> None:
    require_repository("team/cells")
    with pytest.raises(ConfigError, match=r"'a/b/c' is no name of a repository"):
        require_repository("a/b/c")
