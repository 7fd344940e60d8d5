"""``/detect`` answers as ``qwendet infer`` does, in batches, and refuses in plain words."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwendet.infer import infer
from qwendet.inference.predictor import Predictor
from tests.unit.serve.conftest import OVERRIDES, Served, in_base64

PNG = {"Content-Type": "image/png"}


def inferred(image: Path, mode: str | None, labels: list[str] | None = None) -> dict[str, Any]:
    """What the command writes for an image."""
    (line,) = infer(Path("tiny"), [image], mode=mode, labels=labels, overrides=OVERRIDES).lines
    return json.loads(line) | {"image": "image"}


def refused(response: Any) -> tuple[int, str]:
    """Status and words of a refusal."""
    error = response.json()["error"]
    assert error["code"] == response.status_code
    assert all(problem["what"] for problem in error["problems"])
    return response.status_code, error["message"]


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


# Answers


@pytest.mark.parametrize("mode", [None, "head", "text", "both"])
def test_detect__is_what_infer_writes(client: TestClient, images: list[Path], mode: str | None) -> None:
    query = {} if mode is None else {"mode": mode}
    answer = client.post("/detect", content=images[0].read_bytes(), headers=PNG, params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == inferred(images[0], mode)
    assert len(answer.json()["detections"]) > 0


def test_detect__of_several_images_is_a_line_for_each(client: TestClient, images: list[Path]) -> None:
    sent = [in_base64(path) for path in images[:2]]
    answer = client.post("/detect", json={"images": sent})
    expected = [inferred(path, None) | {"image": f"images[{at}]"} for at, path in enumerate(images[:2])]
    found = answer.json()["predictions"]
    assert [one["image"] for one in found] == ["images[0]", "images[1]"]
    for one, other in zip(found, expected, strict=True):  # one batch: sums are rounded otherwise
        best, wanted = one["detections"][0], other["detections"][0]
        assert (one["width"], one["height"], best["desc"]) == (
            other["width"],
            other["height"],
            wanted["desc"],
        )
        assert best["bbox_2d"] == pytest.approx(wanted["bbox_2d"], abs=0.05)
        assert best["score"] == pytest.approx(wanted["score"], abs=1e-4)
    both = client.post("/detect", json={"images": sent, "image": sent[0]})
    assert refused(both)[0] == 422
    status, words = refused(client.post("/detect", json={"images": [sent[0], "file:///etc/passwd"]}))
    assert (status, "images[1]" in words) == (422, True)


def test_detect__labels_and_threshold(client: TestClient, images: list[Path]) -> None:
    labels = ["red circle", "green ring"]
    body = {"image": f"data:image/png;base64,{in_base64(images[1])}", "labels": labels, "threshold": 0.2}
    answer = client.post("/detect", json=body).json()
    expected = inferred(images[1], None, labels)
    above = [item for item in expected["detections"] if item["score"] >= 0.2]
    assert answer == expected | {"detections": above}
    assert 0 < len(above) < len(expected["detections"])
    raw = client.post(
        "/detect", content=images[1].read_bytes(), headers=PNG,
        params={"labels": "red circle, green ring", "threshold": "0.2"},
    )  # fmt: skip
    assert raw.json() == answer


def test_detect__what_arrives_together_is_one_forward(
    served: Served, images: list[Path], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a first image is computed four more arrive, and one for other labels."""
    sound, started, go, sizes = Predictor.predict_encoded, threading.Event(), threading.Event(), []

    def predict(self: Predictor, batch: Any, *others: Any) -> Any:
        sizes.append(len(batch))
        started.set()
        assert go.wait(20)
        return sound(self, batch, *others)

    monkeypatch.setattr(Predictor, "predict_encoded", predict)
    with served() as client, ThreadPoolExecutor(6) as clients:

        def ask(image: Path, query: dict[str, str]) -> dict[str, Any]:
            found: dict[str, Any] = client.post(
                "/detect", content=image.read_bytes(), headers=PNG, params=query
            ).json()
            return found

        asked = [clients.submit(ask, images[0], {})]
        assert started.wait(20)
        asked += [clients.submit(ask, image, {}) for image in images[1:5]]
        asked.append(clients.submit(ask, images[5], {"labels": "red circle"}))
        while "qwendet_waiting 5.0" not in client.get("/metrics").text:
            pass
        go.set()
        answers = [task.result() for task in asked]
        told = client.get("/metrics").text
    assert sorted(sizes) == [1, 1, 4]
    assert "qwendet_batch_size_sum 6.0" in told
    assert 'qwendet_requests_total{route="/detect",status="200"} 6.0' in told
    for image, answer in zip(images[:5], answers, strict=False):
        (alone,) = predictor.predict([predictor_sample(image)])
        assert answer["width"] == alone.width
        best, wanted = answer["detections"][0], alone.detections[0]
        assert (best["desc"], best["score"]) == (wanted.desc, pytest.approx(wanted.score, abs=1e-4))
        assert best["bbox_2d"] == pytest.approx(wanted.bbox_2d, abs=0.02)


def predictor_sample(image: Path) -> Any:
    from qwendet.inference.inputs import sample_of_image

    return sample_of_image(image)


# Refusals


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"image": "/etc/passwd"}, 422, "image: neither base64 nor a data URL"),
        ({"image": "../../etc/passwd"}, 422, "neither base64 nor a data URL"),
        ({"image": "file:///etc/passwd"}, 422, "this address is not fetched (send the image itself"),
        ({"image": "http://127.0.0.1:1/a.png"}, 422, "fetched only below a --allow-url of the server"),
        ({"image": "data:text/plain,hello"}, 422, "this address is not fetched"),
        ({"image": "aGVsbG8="}, 422, "'image' is not an image: expected one of JPEG, PNG"),
        ({"image": ""}, 422, "got an empty file"),
        ({"imag": "aGVsbG8="}, 422, "imag: unknown field (leave it out; known are image, images, labels"),
        ({}, 422, 'expected one image, and all fields in one place (send {"image": BASE64'),
        ({"image": "x", "mode": "tail"}, 422, "mode: input should be 'head', 'text' or 'both', got 'tail'"),
        ({"image": "x", "threshold": 1.5}, 422, "threshold: input should be less than or equal to 1"),
        ({"image": "x", "threshold": True}, 422, "threshold: input should be a valid number, got True"),
        ({"image": "x", "labels": []}, 422, "labels: value should have at least 1 item"),
        ({"image": "x", "labels": ["a", "a"]}, 422, "labels: a label is given twice (name each once)"),
        ({"image": "x", "labels": ["<|im_end|>"]}, 422, "holds special-token text"),
    ],
)  # fmt: skip
def test_detect__refuses_fields(client: TestClient, body: dict[str, Any], status: int, words: str) -> None:
    if body.get("image") == "x":
        body = body | {"image": "aGVsbG8="}
    found = refused(client.post("/detect", json=body))
    assert found[0] == status
    assert words in found[1]


@pytest.mark.parametrize(
    ("content", "kind", "query", "status", "words"),
    [
        (b"{", "application/json", "", 422, "body: invalid JSON: EOF"),
        (b"{}", "text/plain", "", 415, "Content-Type: a body of the kind 'text/plain' is not read"),
        (b"", "", "", 415, "send Content-Type: application/json"),
        (b'{"image": "x"}', "application/json", "?mode=head", 422, "all fields in one place"),
        (png(4, 4), "image/png", "?image=x", 422, "expected one image"),
        (png(4, 4), "image/png", "?size=3", 422, "size: unknown field"),
        (png(4, 4)[:45], "image/png", "", 422, "is truncated or broken"),
        (png(1, 1), "image/png", "", 422, "too small: 1×1"),
    ],
)  # fmt: skip
def test_detect__refuses_bodies(
    client: TestClient, content: bytes, kind: str, query: str, status: int, words: str
) -> None:
    found = refused(client.post(f"/detect{query}", content=content, headers={"Content-Type": kind}))
    assert found[0] == status
    assert words in found[1]


def test_routes__others_are_refused(client: TestClient) -> None:
    known = "known are /, /detect, /v1/chat/completions, /v1/models, /health, /metrics"
    assert refused(client.get("/nowhere")) == (404, f"/nowhere: there is no such route ({known})")
    assert refused(client.get("/detect")) == (405, f"/detect: GET is not taken here ({known})")
    assert refused(client.get("/docs"))[0] == 404
    assert refused(client.get("/../../etc/passwd"))[0] == 404


def test_limits__of_size(served: Served) -> None:
    with served(body_megabytes=1) as client:
        found = refused(client.post("/detect", content=bytes(2_000_000), headers=PNG))
        words = "body: the request has more than 1 MB (shrink the image, or send fewer of them at once)"
        assert found == (413, words)
        fits = client.post("/detect", content=png(10, 10) + bytes(1_000_000), headers=PNG)
        assert (fits.status_code, fits.json()["width"]) == (200, 10)


def test_limits__of_time_and_number(
    served: Served, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is computed, one waits, a third is refused; both others are late."""
    sound, started, go = Predictor.predict_encoded, threading.Event(), threading.Event()

    def predict(self: Predictor, *batch: Any) -> Any:
        started.set()
        assert go.wait(20)
        return sound(self, *batch)

    monkeypatch.setattr(Predictor, "predict_encoded", predict)
    with served(seconds=3.0, waiting=1) as client, ThreadPoolExecutor(3) as clients:

        def ask(_: int) -> Any:
            return client.post("/detect", content=images[0].read_bytes(), headers=PNG)

        asked = [clients.submit(ask, 0)]
        assert started.wait(20)
        asked += [clients.submit(ask, number) for number in (1, 2)]
        answers = [task.result() for task in asked]
        assert "qwendet_waiting 0.0" in client.get("/metrics").text
        go.set()
        again = ask(0)
    assert sorted(answer.status_code for answer in answers) == [503, 504, 504]
    full, late, _ = sorted(answers, key=lambda answer: int(answer.status_code))
    assert full.headers["retry-after"] == "1"
    assert refused(late)[1] == "request: there was no answer within 3 s (try again, with less at once)"
    assert again.status_code == 200


def test_token__is_needed_but_for_page_and_health(served: Served) -> None:
    with served(token="sesame") as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert "<!doctype html>" in client.get("/").text
        for route in ("/v1/models", "/metrics", "/nowhere"):
            assert client.get(route).status_code == 401
        right, wrong = ({"Authorization": f"Bearer {word}"} for word in ("sesame", "sesam"))
        found = client.get("/v1/models", headers=wrong)
        assert found.headers["www-authenticate"] == "Bearer"
        words = "the bearer token is missing or wrong (send the header Authorization: Bearer TOKEN)"
        assert refused(found) == (401, f"Authorization: {words}")
        assert client.get("/v1/models", headers=right).json()["data"][0]["modes"] == ["head", "text", "both"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("[::1]:80", 200), ("127.0.0.2", 200), ("evil.example", 403), ("[evil]", 403)],
)
def test_host__without_a_token_it_is_loopback(client: TestClient, host: str, status: int) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == status


# Addresses


@pytest.fixture(scope="module")
def elsewhere(images: list[Path]) -> Iterator[str]:
    """A web server with an image, and a redirect to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if "moved" in self.path else 200)
            self.send_header("Location", "/image.png")
            self.end_headers()
            self.wfile.write(images[0].read_bytes())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_urls__are_fetched_below_a_prefix_alone(served: Served, images: list[Path], elsewhere: str) -> None:
    with served(url_prefixes=(f"{elsewhere}image",), body_megabytes=1) as client:
        assert client.post("/detect", json={"image": f"{elsewhere}image.png"}).json() == inferred(
            images[0], None
        )
        for url in (f"{elsewhere}other.png", f"http://user@{elsewhere[7:]}image.png", "file:///etc/passwd"):
            found = refused(client.post("/detect", json={"image": url}))
            assert (found[0], "this address is not fetched" in found[1]) == (422, True)
        found = refused(client.post("/detect", json={"image": f"{elsewhere}image-moved"}))
        assert found == (
            422,
            "image: the address cannot be fetched (HTTP Error 302: Found) (send the image itself)",
        )


# Anything


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20) | st.integers(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["image", "labels", "messages", "model", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60)
@given(
    route=st.sampled_from(["/detect", "/v1/chat/completions", "/detect?mode=head&labels=a,b"]),
    kind=st.sampled_from(["application/json", "image/jpeg", "text/html"]),
    content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_anything__is_refused_in_words(client: TestClient, route: str, kind: str, content: bytes) -> None:
    status, words = refused(client.post(route, content=content, headers={"Content-Type": kind}))
    assert status in (400, 415, 422)
    assert words
