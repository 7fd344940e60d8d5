"""``make serving-check``: its models are such as vLLM takes on a CPU, and other answers are found."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving_check
from benchmarks.worlds import PRETRAIN
from qwendet.demo.shapes import write_dataset
from qwendet.families.choose import FAMILIES
from qwendet.inference.inputs import collect_samples

Server = tuple[str, list[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(PRETRAIN, tmp_path_factory.mktemp("images") / "images.jsonl", 1, seed=3)


@pytest.fixture
def server() -> Iterator[Server]:
    """A stand-in for vLLM: its address, what it was asked, what it answers."""
    asked: list[dict[str, Any]] = []
    answer = {"usage": {"prompt_tokens": 0}, "choices": [{"message": {"content": "?"}, "logprobs": None}]}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: Any) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}", asked, answer
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize("family", FAMILIES)
def test_write_export__is_a_model_that_vllm_takes_on_a_cpu(
    family: str, samples: Path, tmp_path: Path
) -> None:
    folder = serving_check.write_export(family, samples, tmp_path)
    limits = json.loads((folder / "serving.json").read_text(encoding="utf-8"))["limits"]
    assert not [limit for limit in limits if "CPU" in limit]


def test_compare__finds_other_tokens_limits_and_texts(samples: Path, tmp_path: Path, server: Server) -> None:
    url, asked, _ = server
    folder = serving_check.write_export("qwen3_vl", samples, tmp_path)
    claims = serving_check.compare(url, folder, collect_samples([samples]), "qwen3_vl")
    assert [(claim.name, claim.status) for claim in claims] == [
        ("prompt tokens", "fail"),
        ("limits", "fail"),
        ("text", "fail"),
    ]
    assert claims[0].found == "as many as qwendet's on 0 of 1"
    first, large = asked
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("model", 0, 128)
    assert large["max_tokens"] == 1
    assert [part["type"] for part in first["messages"][-1]["content"]] == ["image_url", "text"]
