"""Drafts change the time of a text answer and nothing else: trained checkpoints, beside a token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.worlds import PRETRAIN
from qwendet.data.samples import Sample, SampleFile
from qwendet.demo.shapes import write_dataset
from qwendet.inference import predictor as inference
from qwendet.inference.generation import GeneratedAnswer
from qwendet.inference.predictor import Predictor

IMAGES = 150  # for each of two models
NEW_TOKENS = 100  # some answers are cut
OWN = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")


@pytest.fixture(scope="module", params=["tiny", "tiny-qwen3-vl"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return list(
        SampleFile(write_dataset(PRETRAIN, tmp_path_factory.mktemp("scenes") / "s.jsonl", IMAGES, seed=3))
    )


def answers_of(
    model: str, scenes: Sequence[Sample], monkeypatch: pytest.MonkeyPatch, mode: str = "text", **settings: Any
) -> tuple[list[GeneratedAnswer], list[str], int]:
    """Answers, predictions as they are written, and forwards of the language model."""
    wanted = {"model.dtype": "float32", "model.device": "cpu", "infer.max_new_tokens": NEW_TOKENS}
    wanted |= {f"infer.{name}": value for name, value in settings.items()}
    predictor = Predictor.from_checkpoint(
        model, overrides=[f"{key}={value}" for key, value in wanted.items()]
    )
    answers: list[GeneratedAnswer] = []
    sound, forwards = inference.generate_answers, []

    def listen(*given: Any) -> list[GeneratedAnswer]:
        answers.extend(found := sound(*given))
        return found

    predictor.bundle.detector.vlm.model.language_model.register_forward_hook(lambda *_: forwards.append(1))
    with monkeypatch.context() as patch:
        patch.setattr(inference, "generate_answers", listen)
        predictions = [prediction.to_json() for prediction in predictor.predict(scenes, mode)]
    return answers, predictions, len(forwards)


def require_equal(found: Sequence[GeneratedAnswer], wanted: Sequence[GeneratedAnswer]) -> None:
    assert [answer.text for answer in found] == [answer.text for answer in wanted]
    for own, other in zip(found, wanted, strict=True):
        assert (own.token_ends, own.truncated) == (other.token_ends, other.truncated)
        torch.testing.assert_close(
            torch.tensor(own.log_probs), torch.tensor(other.log_probs), rtol=0, atol=1e-4
        )


def test_drafts__write_what_one_token_at_a_time_and_generate_write(
    model: str, scenes: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 images in all, one by one and eight at a time, with the head and without it."""
    plain, predicted, steps = answers_of(model, scenes, monkeypatch, draft="off", batch_size=8)
    assert any(answer.truncated for answer in plain)
    assert generated(model, scenes) == [answer.text for answer in plain]
    for size, mode in ((1, "text"), (8, "both")):
        drafted, found, forwards = answers_of(model, scenes, monkeypatch, mode, batch_size=size)
        require_equal(drafted, plain)
        assert len(found) == len(predicted)
        assert forwards < (len(scenes) * 40 if size == 1 else steps / 2)


def test_drafts__without_a_head_repeat_the_form(
    scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _, steps = answers_of("tiny", scenes[:40], monkeypatch, draft="off", batch_size=8)
    monkeypatch.setattr(Predictor, "_by_head", lambda self, head, encoded, _: [None for _ in encoded])
    drafted, _, forwards = answers_of("tiny", scenes[:40], monkeypatch, batch_size=8)
    require_equal(drafted, plain)
    assert forwards < steps / 1.6


@pytest.mark.parametrize("size", [1, 8])
def test_drafts__keep_constrained_answers_as_they_are(
    model: str, scenes: list[Sample], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"constrained": "true", "max_new_tokens": 70}
    plain, _, _ = answers_of(model, scenes[:40], monkeypatch, draft="off", batch_size=8, **asked)
    drafted, _, _ = answers_of(model, scenes[:40], monkeypatch, batch_size=size, **asked)
    require_equal(drafted, plain)
    assert not any(answer.truncated for answer in drafted)


def generated(model: str, scenes: Sequence[Sample]) -> list[str]:
    """What transformers' own ``generate`` writes."""
    predictor = Predictor.from_checkpoint(model, overrides=["model.dtype=float32", "model.device=cpu"])
    vlm, tokenizer = predictor.bundle.detector.vlm, predictor.bundle.processor.tokenizer
    texts = []
    for first in range(0, len(scenes), 8):
        items = [predictor.encoder.encode(scene, with_answer=False) for scene in scenes[first : first + 8]]
        batch = predictor.collator(items)
        given = {key: batch[key] for key in OWN}
        with torch.inference_mode():
            ids = vlm.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        texts += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
