"""The embedded model behind a client, and images to send it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from qwendet.inference.predictor import Predictor
from qwendet.serve.app import create_app
from qwendet.serve.limits import Limits

Served = Callable[..., Any]
OVERRIDES = ("infer.max_new_tokens=48", "model.dtype=float32", "infer.batch_size=4")
"""The model's text answers end late, if ever; a batch is small enough to be filled."""


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """The embedded model; none may change it."""
    return Predictor.from_checkpoint("tiny", overrides=OVERRIDES)


@pytest.fixture(scope="session")
def images(scenes_file: Path) -> list[Path]:
    return sorted(path for path in scenes_file.parent.rglob("*") if path.suffix in (".png", ".jpg"))


@pytest.fixture(scope="session")
def served(predictor: Predictor) -> Served:
    """Serve the model within a block, under given limits."""

    @contextmanager
    def serve(token: str | None = None, **limits: Any) -> Iterator[TestClient]:
        app = create_app(predictor, "tiny", Limits(**limits), token)
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            yield client

    return serve


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[TestClient]:
    """A server with the default limits."""
    with served() as client:
        yield client


def in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
