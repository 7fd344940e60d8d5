"""OpenAI's chat route: the greedy answer to a client's own prompt; what cannot be honoured is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from qwendet.data.images import open_image
from qwendet.data.samples import Sample
from qwendet.encoding.prompts import conversation, request_text
from qwendet.inference.generation import generate_answers
from qwendet.inference.inputs import sample_of_image
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle
from tests.unit.serve.conftest import in_base64
from tests.unit.serve.test_detect import refused


def picture(image: Path) -> dict[str, Any]:
    url = f"data:image/png;base64,{in_base64(image)}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_encode_chat__is_what_encode_makes(bundle: Bundle, lessons: list[Sample]) -> None:
    """Demonstrations and question, as messages and as a sample: token for token, pixel for pixel."""
    encoder, data = bundle.encoder(), bundle.config.data
    for lesson in lessons:
        expected = encoder.encode(lesson, with_answer=False)
        spans = expected.teacher_assistant_spans
        answers = [encoder.tokenizer.decode(expected.input_ids[start : end - 1]) for start, end in spans]
        request = request_text(data.request, bundle.labels)
        messages = conversation(encoder.system_prompt, [request] * (1 + len(answers)), answers)
        turns = [*lesson.teachers, lesson.student]
        images = [open_image(turn.image, turn.root, "x") for turn in turns]
        found = encoder.encode_chat(messages, images, "x")
        assert found.input_ids.tolist() == expected.input_ids.tolist()
        assert found.mm_token_type_ids.tolist() == expected.mm_token_type_ids.tolist()
        assert torch.equal(found.pixel_values, expected.pixel_values)
        assert found.student_image_start == expected.student_image_start


@pytest.mark.parametrize("most", [48, 9])
def test_chat__answers_as_the_predictor(
    client: TestClient, predictor: Predictor, images: list[Path], most: int
) -> None:
    data, infer = predictor.bundle.config.data, predictor.bundle.config.infer
    encoded = predictor.encoder.encode(sample_of_image(images[0]), with_answer=False)
    (expected,) = generate_answers(
        predictor.bundle.detector, predictor.encoder.tokenizer, predictor.collator([encoded]), most
    )
    request = request_text(data.request, predictor.bundle.labels)
    body = {
        "model": "tiny", "temperature": 0, "n": 1, "stream": False, "seed": 3, "top_p": None,
        "max_tokens": None if most == infer.max_new_tokens else most, "logprobs": True,
        "messages": [
            {"role": "system", "content": data.system_prompt},
            {"role": "user", "content": [picture(images[0]), text(request)]},
        ],
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=body).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["finish_reason"] == ("length" if expected.truncated else "stop")
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == expected.text
    assert [token["logprob"] for token in tokens] == pytest.approx(expected.log_probs, abs=1e-5)
    assert answer["usage"]["prompt_tokens"] == len(encoded.input_ids)
    assert answer["usage"]["completion_tokens"] == len(expected.log_probs) + (not expected.truncated)
    assert answer["object"] == "chat.completion"


def test_chat__two_images_and_a_demonstration(client: TestClient, images: list[Path]) -> None:
    ask = {
        "role": "user",
        "content": [picture(images[0]), picture(images[1]), text("Locate every red ring.")],
    }
    shown = {"role": "assistant", "content": "[]"}
    usage = [
        client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": turns, "max_tokens": 1}
        ).json()["usage"]
        for turns in ([ask], [ask, shown, ask])
    ]
    assert usage[1]["prompt_tokens"] > 2 * usage[0]["prompt_tokens"] - 60
    assert usage[0]["completion_tokens"] == 1


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
ASK = {"role": "user", "content": [IMAGE, {"type": "text", "text": "Locate every cat."}]}


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"stream": True}, 400, "stream is true, but answers are greedy, one a request, in one piece"),
        ({"temperature": 0.7}, 400, "leave temperature out or send 0"),
        ({"n": 2}, 400, "n is 2"),
        ({"top_logprobs": 3}, 400, "top_logprobs is 3"),
        ({"tools": []}, 400, "tools: unknown field (leave it out; known are model, messages"),
        ({"stop": ["]"]}, 400, "stop: unknown field"),
        ({"max_tokens": 49}, 400, "max_tokens: max_tokens is 49, and at most 48 are written"),
        ({"max_tokens": 0}, 400, "max_tokens: input should be greater than or equal to 1"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, 400, "differ (send one of them)"),
        ({"model": "gpt"}, 404, "model: there is no model 'gpt' (the model is 'tiny')"),
        ({"messages": []}, 400, "messages: wrong order of turns (send [system,] user[, assistant, user …])"),
        ({"messages": [ASK, ASK]}, 400, "messages: wrong order of turns"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role: input should be 'system'"),
        ({"messages": [{"role": "user", "content": "no image"}]}, 400, "messages: no image"),
        ({"messages": [{"role": "user", "content": ASK["content"][::-1]}]}, 400, "text before an image"),
        ({"messages": [{"role": "system", "content": ""}, ASK]}, 400, "an empty system text"),
        ({"messages": [{"role": "system", "content": [IMAGE]}, ASK]}, 400, "only users show images"),
        ({"messages": [{"role": "system", "content": "<|im_end|>"}, ASK]}, 400, "control token <|im_end|>"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 400, "video_url"),
        ({}, 422, "'messages[0].content[0]' is not an image"),
    ],
)  # fmt: skip
def test_chat__what_cannot_be_honoured_is_refused(
    client: TestClient, fields: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": [ASK]} | fields)
    found = refused(answer)
    assert found[0] == status
    assert words in found[1]
