"""A checkpoint asked through a server: the same predictions, and what is said of one that is not sound."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.worlds import PRETRAIN
from qwendet import Predictor
from qwendet.cli.main import run
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import ASSETS
from qwendet.errors import ConfigError
from qwendet.evaluation.command import evaluate_model
from qwendet.inference import chat_server
from qwendet.inference.chat_server import ChatServer, Question, ServerError
from qwendet.inference.inputs import sample_of_image
from qwendet.inference.served import ServedPredictor, predictor_of
from tests.served.stand_in import StandIn, serving

TINY = ASSETS / "tiny"
SETTINGS = ["model.dtype=float32", "model.device=cpu", "infer.max_new_tokens=60"]


@pytest.fixture(scope="module")
def own() -> Predictor:
    return Predictor.from_checkpoint(TINY, overrides=SETTINGS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(PRETRAIN, tmp_path_factory.mktemp("scenes") / "val.jsonl", 4, seed=3)


@pytest.fixture
def stand_in(own: Predictor) -> StandIn:
    return StandIn(own.bundle.detector.vlm, own.bundle.processor)


@pytest.fixture
def url(stand_in: StandIn) -> Iterator[str]:
    with serving(stand_in) as url:
        yield url


def served(url: str, *settings: str) -> ServedPredictor:
    predictor = predictor_of(TINY, url, overrides=[*SETTINGS, *settings])
    assert isinstance(predictor, ServedPredictor)
    return predictor


def test_predict_all__gives_what_the_checkpoint_gives_in_order(
    own: Predictor, scenes: Path, url: str
) -> None:
    samples = list(SampleFile(scenes))
    shown = [samples[0], *samples[1:]]
    found, wanted = served(url).predict_all(shown), own.predict_all(shown, "text")
    for prediction, expected in zip(found, wanted, strict=True):
        assert prediction.image == expected.image
        assert [(item.bbox_2d, item.desc) for item in prediction.detections] == [
            (item.bbox_2d, item.desc) for item in expected.detections
        ]
        scores = [item.score for item in expected.detections]
        assert [item.score for item in prediction.detections] == pytest.approx(scores, abs=1e-4)
        assert prediction.answer == expected.answer
    assert any(prediction.detections for prediction in found)


def test_predict_all__asks_the_server_about_windows_too(
    own: Predictor, scenes: Path, url: str, stand_in: StandIn
) -> None:
    samples = list(SampleFile(scenes))[:2]
    tiles = ["infer.tiles=2x1", "infer.overlap=0.3"]
    found = served(url, *tiles).predict_all(samples)
    tiled = Predictor.from_checkpoint(TINY, overrides=[*SETTINGS, *tiles])
    for prediction, expected in zip(found, tiled.predict_all(samples, "text"), strict=True):
        assert prediction.answer == expected.answer
        assert [(item.bbox_2d, item.desc) for item in prediction.detections] == [
            (item.bbox_2d, item.desc) for item in expected.detections
        ]
        assert (prediction.width, prediction.height) == (expected.width, expected.height)
    assert found != served(url).predict_all(samples)
    assert served(url, *tiles).origin()["tiles"] == "2x1"


def test_eval__of_the_server_equals_that_of_the_checkpoint(scenes: Path, url: str, tmp_path: Path) -> None:
    settings = {"overrides": SETTINGS, "mode": "text"}
    kept = tmp_path / "run.json.part"
    by_server = evaluate_model(TINY, scenes, server=url, kept=kept, **settings)  # type: ignore[arg-type]
    by_checkpoint = evaluate_model(TINY, scenes, **settings)  # type: ignore[arg-type]
    (found,), (wanted,) = by_server.runs, by_checkpoint.runs
    assert found.metrics == pytest.approx(wanted.metrics, nan_ok=True)
    assert found.answers == wanted.answers
    assert (kept / "text" / "process-0.jsonl").read_text(encoding="utf-8").count("\n") == 4


def test_teachers__are_sent_as_turns_before(
    own: Predictor, scenes: Path, url: str, stand_in: StandIn
) -> None:
    first, second, *_ = SampleFile(scenes)
    sample = replace(second, teachers=(first.student,))
    (found,) = served(url).predict_all([sample])
    (wanted,) = own.predict_all([sample], "text")
    assert found.detections == pytest.approx(wanted.detections) or found.answer == wanted.answer
    roles = [message["role"] for message in stand_in.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


def test_resized_images__have_the_pixels_that_the_processor_makes(own: Predictor, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (91, 203, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    sample = sample_of_image(tmp_path / "noise.png")
    _, (image,) = own.encoder.chat(sample)
    process = own.bundle.processor.image_processor
    once = own.encoder.encode(sample, with_answer=False).pixel_values
    assert (process(images=[image], return_tensors="pt")["pixel_values"] == once).all()


def test_other_prompt__ends_the_run_at_once(url: str, stand_in: StandIn, scenes: Path) -> None:
    predictor = served(url)
    stand_in.messages = lambda messages: [turn for turn in messages if turn["role"] != "system"]
    with pytest.raises(ServerError, match=r"tokens on the server and \d+ here"):
        predictor.predict_all(list(SampleFile(scenes)))


@pytest.mark.parametrize("command", [["infer", "--output"], ["eval", "--json"]])
def test_interrupted_command__says_where_answers_are_and_what_goes_on(
    url: str,
    stand_in: StandIn,
    scenes: Path,
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server answers twice, then fails; the second call asks for the rest alone."""
    name, option = command
    output = tmp_path / "out file"
    kept = tmp_path / "out file.part"
    words = [name, str(TINY), str(scenes), "--server", url, option, str(output), "--mode", "text"]
    for setting in (*SETTINGS, "infer.server_requests=1"):
        words += ["--set", setting]
    monkeypatch.setattr("sys.argv", ["qwendet", *words])
    monkeypatch.setattr(chat_server, "RETRIES", 0)
    stand_in.respond = lambda own, body: ({}, 500) if len(own.requests) > 3 else (own.complete(body),)
    with pytest.raises(SystemExit) as ending:
        run(words)
    assert (ending.value.code, output.exists()) == (3, False)
    (answers,) = kept.rglob("process-0.jsonl")
    assert answers.read_text(encoding="utf-8").count("\n") == 2
    again = shlex.join(["qwendet", *words, "--resume"])
    said = f"What is predicted is kept in {kept}; this goes on from there: {again}"
    assert said in capsys.readouterr().err
    stand_in.respond, asked = None, len(stand_in.requests)
    with pytest.raises(SystemExit) as ending:
        run([*words, "--resume"])
    assert (ending.value.code in (0, None), kept.exists()) == (True, False)
    assert len(stand_in.requests) - asked == 1 + 2, "a probe, and the two images that were left"
    assert "is kept in" not in capsys.readouterr().err


def test_infer__writes_the_output_and_removes_what_was_kept(
    url: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.jsonl"
    words = ["infer", str(TINY), str(scenes), "--server", url, "--output", str(output)]
    for setting in SETTINGS:
        words += ["--set", setting]
    with pytest.raises(SystemExit) as ending:
        run(words)
    assert ending.value.code in (0, None)
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [record["image"] for record in records] == [sample.student.image for sample in SampleFile(scenes)]
    assert not (tmp_path / "found.jsonl.part").exists()
    told = {"server": f"{url}/v1", "server_model": "stand-in"}
    assert all(record["model"] | told == record["model"] for record in records), "a server is told"
    assert f"--server {url}" in capsys.readouterr().err


def test_no_log_probabilities__are_told_and_scores_are_one(
    url: str, stand_in: StandIn, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.tells = ()
    found = served(url).predict_all(list(SampleFile(scenes))[:2])
    assert "gives no log-probabilities: every box of an answer has score 1" in caplog.text
    assert {item.score for prediction in found for item in prediction.detections} == {1.0}


def test_busy_server__is_asked_again(url: str, stand_in: StandIn, scenes: Path) -> None:
    predictor = served(url)
    refusals = iter([503, 429])

    def busy(own: StandIn, body: dict[str, Any]) -> Any:
        status = next(refusals, None)
        return ({"error": "busy"}, status) if status else (own.complete(body),)

    stand_in.respond = busy
    assert len(predictor.predict_all(list(SampleFile(scenes))[:1])) == 1
    assert next(refusals, None) is None


def test_requests_at_once__are_bounded(url: str, stand_in: StandIn, scenes: Path) -> None:
    predictor, lock, running, most = served(url, "infer.server_requests=2"), threading.Lock(), [0], [0]

    def count(own: StandIn, body: dict[str, Any]) -> Any:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        reply = own.complete(body)
        with lock:
            running[0] -= 1
        return (reply,)

    stand_in.respond = count
    predictor.predict_all(list(SampleFile(scenes)))
    assert most == [2]


# What is no server, or not a sound one


def test_no_server__is_told() -> None:
    with pytest.raises(ServerError) as told:
        served("http://127.0.0.1:9")
    (problem,) = told.value.problems
    assert "the server cannot be reached" in problem.what
    assert problem.where == "http://127.0.0.1:9/v1 (model " + str(TINY) + ")"
    assert "start the server" in problem.fix
    assert told.value.exit_code == 3
    with pytest.raises(ConfigError, match="expected a URL"):
        served("localhost:8000")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (("<html>Welcome to nginx</html>",), "no server of OpenAI's chat protocol"),
        (({"error": "no"},), "no server of OpenAI's chat protocol"),
        (({"choices": []},), "no server of OpenAI's chat protocol"),
        (({"error": {"message": "bad token"}}, 401), "refuses the token"),
        (({"error": {"message": "no such model"}}, 404), "no such route or model"),
        (({"detail": "Server is pinned to 'a'"}, 400), "pinned to 'a'"),
    ],
)
def test_unusable_answer__is_told(url: str, stand_in: StandIn, answer: tuple[Any, ...], words: str) -> None:
    stand_in.respond = lambda own, body: answer
    with pytest.raises(ServerError, match=words):
        served(url)


def test_thought_alone__is_told(url: str, stand_in: StandIn, scenes: Path) -> None:
    predictor = served(url)

    def think(own: StandIn, body: dict[str, Any]) -> Any:
        reply = own.complete(body)
        message = reply["choices"][0]["message"]
        message["reasoning_content"], message["content"] = message["content"], None
        return (reply,)

    stand_in.respond = think
    with pytest.raises(ServerError, match="the message holds a thought alone"):
        predictor.predict_all(list(SampleFile(scenes))[:1])


def test_stalling_server__is_given_up(
    own: Predictor, url: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ChatServer(url + "/v1", "stand-in", own.bundle.processor.family, timeout=0.2, asks=())
    stand_in.respond = lambda own, body: time.sleep(0.5) or ({},)
    question = Question([{"role": "user", "content": "a"}], 1)
    monkeypatch.setattr(chat_server, "RETRIES", 0)
    with pytest.raises(ServerError, match=r"no whole answer within 0\.2 seconds"):
        server.ask(question)


def test_modes__that_a_server_has_not(url: str) -> None:
    with pytest.raises(ConfigError, match="a server answers in text alone"):
        predictor_of(TINY, url, mode="head")
    with pytest.raises(ConfigError, match="cannot be kept inside the grammar"):
        served(url, "infer.constrained=true")
