"""Bugs that ``consistency.prompt.*`` is for: the prompt, the template, the tokenizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from qwendet.encoding import encode
from qwendet.encoding.encode import EncodedSample, Encoder
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle
from qwendet.training import trainer as training
from tests.planted.bug import Bug
from tests.planted.in_code import at_inference, changing, in_training, replacing


def newline_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Encoder._tokenize
    monkeypatch.setattr(
        Encoder, "_tokenize", lambda self, text, *own: sound(self, text.removesuffix("\n"), *own)
    )


def without_generation_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Encoder.encode

    def encode_sample(self: Encoder, sample: Any, *, with_answer: bool, **given: Any) -> EncodedSample:
        item = sound(self, sample, with_answer=with_answer, **given)
        if with_answer:
            return item
        ids = item.input_ids[: -len(self._tokenize("<|im_start|>assistant\n"))]
        return replace(item, input_ids=ids, mm_token_type_ids=item.mm_token_type_ids[: len(ids)])

    monkeypatch.setattr(Encoder, "encode", encode_sample)


def own_system_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Predictor.__init__

    def init(self: Predictor, bundle: Bundle) -> None:
        sound(self, bundle)
        self.encoder.system_prompt = "You are Qwen."

    monkeypatch.setattr(Predictor, "__init__", init)


def without_end_of_turn(found: tuple[list[int], list[tuple[int, int]]]) -> Any:
    ids, spans = found
    return ids, [(start, end - 1) for start, end in spans]


def pad_is_end(bundle: Bundle) -> None:
    bundle.processor.tokenizer.pad_token = "<|im_end|>"


def split_tokens(bundle: Bundle) -> None:
    bundle.processor.tokenizer.split_special_tokens = True


def another_template(bundle: Bundle) -> None:
    tokenizer = bundle.processor.tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")


def another_vocabulary(bundle: Bundle) -> None:
    bundle.processor.tokenizer.add_tokens(["circle of"])


def without_types(batches: Any) -> Any:
    for batch in batches:
        yield batch | {"mm_token_type_ids": torch.zeros_like(batch["mm_token_type_ids"])}


PROMPT_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "newline before the answer lost",
        "consistency.prompt.text",
        ("published chat format",),
        newline_lost,
    ),
    Bug(
        "request names labels in another order",
        "consistency.prompt.text",
        ("published chat format",),
        replacing(
            encode, "request_text", lambda text, labels: text.replace("{labels}", ", ".join(labels[::-1]))
        ),
    ),
    Bug(
        "image token missing",
        "consistency.prompt.text",
        ("published chat format",),
        changing(Encoder, "_num_tokens", lambda count: count - 1),
    ),
    Bug(
        "no generation prompt at inference",
        "test.prompt.prefix",
        ("not what training saw",),
        without_generation_prompt,
    ),
    Bug(
        "system prompt differs at inference",
        "test.prompt.prefix",
        ("not what training saw", "You are"),
        own_system_prompt,
    ),
    Bug(
        "template edited at inference",
        "test.prompt.template",
        ("chat template", "inference"),
        at_inference(another_template),
    ),
    Bug(
        "template edited in training",
        "test.prompt.template",
        ("chat template", "training"),
        in_training(another_template),
    ),
    Bug(
        "special tokens split",
        "consistency.prompt.special_tokens",
        ("<|image_pad|>", "inference"),
        at_inference(split_tokens),
    ),
    Bug(
        "padding is the end of turn",
        "consistency.prompt.special_tokens",
        ("must differ", "training"),
        in_training(pad_is_end),
    ),
    Bug(
        "a token added at inference",
        "test.prompt.tokenizer",
        ("entries of the vocabularies differ",),
        at_inference(another_vocabulary),
    ),
    Bug(
        "end of turn not learned",
        "test.prompt.labels",
        ("is of an answer but not learned",),
        changing(Encoder, "_tokens", without_end_of_turn),
    ),
    Bug(
        "trainer drops a column",
        "test.prompt.loader",
        ("mm_token_type_ids",),
        changing(training.DetectionTrainer, "get_train_dataloader", without_types),
    ),
]
