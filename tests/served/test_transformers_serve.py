"""``transformers serve`` itself, in a process of its own: it passes, and answers as the checkpoint does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.worlds import PRETRAIN
from qwendet import Predictor
from qwendet.checks.preflight import run_served_checks
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import ASSETS
from qwendet.inference.served import predictor_of

pytestmark = pytest.mark.slow
TINY = ASSETS / "tiny"
SETTINGS = ["model.dtype=float32", "model.device=cpu", "infer.max_new_tokens=60"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Path(__file__).with_name("transformers_server.py")
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("w") as file:
        command = [sys.executable, str(server), str(TINY), str(port), "float32"]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_checks__pass(url: str) -> None:
    ids = ["served.template", "served.images", "served.resize", "served.weights", "served.text"]
    results, _ = run_served_checks(url, TINY, overrides=SETTINGS, only=ids)
    found = [(result.id, result.status) for result in results]
    assert found == [(id, "pass") for id in ids], "\n".join(result.what for result in results)


def test_predictions__are_the_checkpoints(url: str, tmp_path: Path) -> None:
    samples = list(SampleFile(write_dataset(PRETRAIN, tmp_path / "val.jsonl", 4, seed=3)))
    found = predictor_of(TINY, url, overrides=SETTINGS).predict_all(samples)
    wanted = Predictor.from_checkpoint(TINY, overrides=SETTINGS).predict_all(samples, "text")
    assert [prediction.answer for prediction in found] == [prediction.answer for prediction in wanted]
    for prediction, expected in zip(found, wanted, strict=True):
        boxes = [(item.bbox_2d, item.desc) for item in prediction.detections]
        assert sorted(boxes) == sorted((item.bbox_2d, item.desc) for item in expected.detections)
