"""``qwendet serve`` under load: throughput beside ``infer``, waiting times, broken requests, a kill.

    python -m benchmarks.serve                   about 2 minutes on two cores

The embedded model's head in float32, images of 84 to 168 pixels a side; clients are threads of this process,
on the same cores. ``throughput_over_infer`` is images a second with 32 clients, which leave no pause between
batches of eight, over those of ``infer`` with the model already loaded, in a process of its own, one after
the other, whose threads do not spin while they wait, as those of every ``qwendet`` command. The ratio of the
processor's seconds stands beside it, which other work on the machine changes less. An answer is wrong if a
detection above 0.1 has no counterpart with its label, its score within 0.001 and its box within 0.1 pixels.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import parser, report

CLIENTS = (1, 8, 32)
FULL = CLIENTS[-1]
SETTINGS = ("model.dtype=float32",)
TIME_INFER = """
import json, sys, time
from pathlib import Path
from qwendet.inference.inputs import collect_samples
from qwendet.inference.predictor import Predictor
predictor = Predictor.from_checkpoint("tiny", overrides=sys.argv[2:])
samples = collect_samples([Path(sys.argv[1])])
predictor.predict_all(samples[:8])
started, used = time.perf_counter(), time.process_time()
lines = [found.to_json() for found in predictor.predict_all(samples)]
seconds, used = time.perf_counter() - started, time.process_time() - used
found = [json.loads(line) for line in lines]
print(json.dumps({"seconds": seconds, "processor_seconds": used, "found": found}))
"""


@dataclass
class Work:
    """Images, and what ``infer`` finds in them."""

    images: list[bytes]
    expected: list[dict[str, Any]]


@dataclass
class Load:
    """What sending every image once took.

    Attributes:
        seconds: in all.
        processor_seconds: of the server.
        waits: seconds of each answer.
        wrong: answers that are not those of ``infer``.
    """

    seconds: float
    processor_seconds: float
    waits: list[float]
    wrong: int


@contextmanager
def server(port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, and its port."""
    words = ["serve", "tiny", "--port", str(port), "--format", "json"]
    words += [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "qwendet", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        told = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        try:
            yield process, int(told["url"].rpartition(":")[2])
        finally:
            process.kill()


def post(
    connection: http.client.HTTPConnection, content: bytes, kind: str = "image/png", route: str = "/detect"
) -> tuple[int, bytes]:
    """Status and body of an answer."""
    connection.request("POST", route, content, {"Content-Type": kind})
    answer = connection.getresponse()
    return answer.status, answer.read()


def is_right(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether an answer is that of ``infer``, but for what a sum may be off."""
    return found["width"] == expected["width"] and all(
        any(
            item["desc"] == other["desc"]
            and abs(item["score"] - other["score"]) < 1e-3
            and max(abs(a - b) for a, b in zip(item["bbox_2d"], other["bbox_2d"], strict=True)) < 0.1
            for other in found["detections"]
        )
        for item in expected["detections"]
        if item["score"] > 0.1
    )


def shared_out(
    clients: int, number: int, act: Callable[[http.client.HTTPConnection, int], None], port: int
) -> float:
    """Let clients do a number of things together, each on a connection of its own; seconds that it took."""

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for index in range(first, number, clients):
            act(connection, index)
        connection.close()

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(client, range(clients)))
    return time.perf_counter() - started


def load(work: Work, clients: int, port: int, pid: int) -> Load:
    """Send every image once."""
    answers: dict[int, tuple[float, int, bytes]] = {}

    def ask(connection: http.client.HTTPConnection, index: int) -> None:
        started = time.perf_counter()
        status, body = post(connection, work.images[index])
        answers[index] = time.perf_counter() - started, status, body

    before = processor_seconds(pid)
    seconds = shared_out(clients, len(work.images), ask, port)
    used = processor_seconds(pid) - before
    wrong = sum(
        status != 200 or not is_right(json.loads(body), work.expected[index])
        for index, (_, status, body) in answers.items()
    )
    return Load(seconds, used, [wait for wait, _, _ in answers.values()], wrong)


def processor_seconds(pid: int) -> float:
    """What a process has used until now."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def malformed(work: Work, count: int, port: int) -> int:
    """Requests of many broken kinds; how many were refused in words, with a status of 4xx."""
    draw = random.Random(0)
    refused: list[int] = []
    texts = [
        "{",
        "[]",
        '{"image": 3}',
        '{"image": "file:///etc/passwd"}',
        '{"image": "eHg=", "labels": ["<|im_end|>"]}',
    ]

    def ask(connection: http.client.HTTPConnection, index: int) -> None:
        image = work.images[index % len(work.images)]
        content, kind = (
            (draw.randbytes(draw.randrange(200)), "image/jpeg"),
            (image[: draw.randrange(len(image) // 2)], "image/png"),
            (draw.choice(texts).encode(), "application/json"),
            (b'{"model": "tiny", "messages": ' + b"[" * draw.randrange(9000), "application/json"),
            (image, draw.choice(["text/html", "", "multipart/form-data"])),
        )[index % 5]
        route = draw.choice(["/detect", "/v1/chat/completions", "/detect?mode=tail", "/nowhere"])
        status, body = post(connection, content, kind, route)
        if 400 <= status < 500 and json.loads(body)["error"]["message"]:
            refused.append(index)

    shared_out(8, count, ask, port)
    return len(refused)


def killed_and_restarted(work: Work, port: int, process: subprocess.Popen[str]) -> dict[str, int]:
    """Kill the server under load, start it again at its port; clients ask again what was not answered."""
    counts = {"answers": 0, "wrong": 0, "broken_connections": 0}
    lock = threading.Lock()
    half = threading.Event()

    def ask(connection: http.client.HTTPConnection, index: int) -> None:
        at = index % len(work.images)
        while True:
            try:
                status, body = post(connection, work.images[at])
                break
            except (OSError, http.client.HTTPException):
                connection.close()
                with lock:
                    counts["broken_connections"] += 1
                time.sleep(0.2)
        with lock:
            counts["answers"] += 1
            counts["wrong"] += status != 200 or not is_right(json.loads(body), work.expected[at])
            if counts["answers"] == len(work.images):
                half.set()

    with ThreadPoolExecutor(1) as background:
        done = background.submit(shared_out, 8, 2 * len(work.images), ask, port)
        half.wait()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with server(port):
            done.result()
    return counts


def infer_alone(folder: Path) -> dict[str, Any]:
    """Seconds of ``infer`` over all images, and what it finds; threads wait as the command lets them."""
    command = [sys.executable, "-c", TIME_INFER, str(folder), *SETTINGS]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main() -> None:
    """Measure, report."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=160, help="images sent in a round (160)")
    arguments.add_argument("--rounds", type=int, default=3, help="rounds of infer and of each load (3)")
    arguments.add_argument("--malformed", type=int, default=1000, help="broken requests (1000)")
    options = arguments.parse_args()
    from benchmarks.worlds import PRETRAIN
    from qwendet.demo.shapes import write_dataset

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        write_dataset(PRETRAIN, Path(name) / "scenes.jsonl", options.images, seed=0)
        images = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
        with server(0) as (process, port):
            rounds = []
            for _ in range(options.rounds + 1):
                alone = infer_alone(folder)
                work = Work(images, alone["found"])
                loads = {clients: load(work, clients, port, process.pid) for clients in CLIENTS}
                rounds.append((alone, loads))
            figures = figures_of(rounds[1:], options.images)  # the first warms up
            figures["malformed"] = options.malformed
            figures["malformed_refused"] = malformed(work, options.malformed, port)
            figures["alive_after_malformed"] = process.poll() is None
            counts = killed_and_restarted(work, port, process)
            figures |= {f"kill_{name}": count for name, count in counts.items()}
    report(figures, options.json)


def figures_of(rounds: Sequence[tuple[dict[str, Any], dict[int, Load]]], images: int) -> dict[str, Any]:
    """Medians of the rounds; a ratio is the median of the rounds' ratios."""
    median = statistics.median
    figures: dict[str, Any] = {
        "images": images,
        "infer_images_per_second": images / median(alone["seconds"] for alone, _ in rounds),
        "throughput_over_infer": median(alone["seconds"] / own[FULL].seconds for alone, own in rounds),
        "infer_over_serve_processor_time": median(
            alone["processor_seconds"] / own[FULL].processor_seconds for alone, own in rounds
        ),
    }
    for clients in CLIENTS:
        loads = [own[clients] for _, own in rounds]
        waits = sorted(wait for own in loads for wait in own.waits)
        figures |= {
            f"images_per_second_{clients}": images / median(own.seconds for own in loads),
            f"p50_ms_{clients}": 1000 * waits[len(waits) // 2],
            f"p95_ms_{clients}": 1000 * waits[int(0.95 * len(waits))],
            f"wrong_{clients}": sum(own.wrong for own in loads),
        }
    return figures


if __name__ == "__main__":
    main()
