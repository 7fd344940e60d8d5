"""The model's side: questions to answers, by the same predictor and encoder as ``qwendet infer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qwendet.data.images import decode_image
from qwendet.data.samples import Sample, Turn
from qwendet.encoding.collate import require_left_padding, to_device
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import EnvironmentLacksError
from qwendet.inference.detections import Prediction
from qwendet.inference.generation import GeneratedAnswer, generate_answers
from qwendet.inference.predictor import Predictor
from qwendet.serve.requests import Picture

LABEL_SETS_KEPT = 16


class Detect(NamedTuple):
    """Settings of detections: mode, and labels other than the model's."""

    mode: str | None
    labels: tuple[str, ...] | None


class Chat(NamedTuple):
    """Settings of a chat's answer: most tokens of it."""

    max_new_tokens: int


class Question(NamedTuple):
    """Images, and the messages of a chat that shows them."""

    pictures: tuple[Picture, ...]
    messages: Sequence[dict[str, Any]] = ()


class Answerer:
    """Answers questions; what is prepared by several threads is computed by one."""

    def __init__(self, predictor: Predictor) -> None:
        config = predictor.bundle.config
        # Each request has its own threshold.
        every = config.infer.model_copy(update={"score_threshold": 0.0})
        self._bundle = replace(predictor.bundle, config=config.model_copy(update={"infer": every}))
        self._predictor = lru_cache(LABEL_SETS_KEPT)(self._made_for)

    def prepare(self, settings: Detect | Chat, question: Question) -> list[EncodedSample]:
        """Decode and encode a question, for as many requests as its labels take."""
        images = [decode_image(content, place, place) for content, place in question.pictures]
        if isinstance(settings, Chat):
            return [self._predictor(None).encoder.encode_chat(question.messages, images, "messages")]
        predictor = self._predictor(settings.labels)
        sample = _sample(question.pictures[0].place)
        return list(predictor.requests(sample, predictor.sources(settings.mode), images))

    def length(self, prepared: Sequence[EncodedSample]) -> int:
        """Tokens of its prompt."""
        return len(prepared[0].input_ids)

    def answer(
        self, settings: Detect | Chat, prepared: Sequence[Sequence[EncodedSample]]
    ) -> list[Prediction] | list[tuple[GeneratedAnswer, int]]:
        """Answer prepared questions in one batch; a chat's answer comes with the tokens of its prompt."""
        try:
            if isinstance(settings, Chat):
                return self._replies(settings, [encoded for (encoded,) in prepared])
            predictor = self._predictor(settings.labels)
            samples = [_sample(items[0].where) for items in prepared]
            return predictor.predict_requests(samples, prepared, predictor.sources(settings.mode))
        except torch.OutOfMemoryError as error:
            fix = "try again, or start the server with --set infer.batch_size=1"
            raise EnvironmentLacksError("too little memory", "server", fix) from error

    def _made_for(self, labels: tuple[str, ...] | None) -> Predictor:
        config = self._bundle.config
        data = config.data.model_copy(update={} if labels is None else {"labels": labels})
        return Predictor(replace(self._bundle, config=config.model_copy(update={"data": data})))

    def _replies(self, chat: Chat, encoded: Sequence[EncodedSample]) -> list[tuple[GeneratedAnswer, int]]:
        detector, tokenizer = self._bundle.detector, self._bundle.processor.tokenizer
        batch = self._predictor(None).collator(encoded)
        require_left_padding(batch)
        answers = generate_answers(
            detector, tokenizer, to_device(batch, detector.device), chat.max_new_tokens
        )
        return list(zip(answers, (len(item.input_ids) for item in encoded), strict=True))


def _sample(place: str) -> Sample:
    return Sample(Turn(place, (), root=Path()), where=place)
