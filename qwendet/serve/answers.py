"""The model's side: questions to answers, by the same predictor and encoder as ``qwendet infer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from qwendet.data.images import image_size
from qwendet.data.samples import Sample, Turn
from qwendet.encoding.collate import require_left_padding, to_device
from qwendet.errors import EnvironmentLacksError
from qwendet.inference.detections import Prediction
from qwendet.inference.generation import generate_answers
from qwendet.inference.predictor import Predictor
from qwendet.inference.token_scores import GeneratedAnswer
from qwendet.serve.refusals import RefusedError
from qwendet.serve.requests import Picture

LABEL_SETS_KEPT = 16


@dataclass(frozen=True)
class Detect:
    """Settings of detections: mode, and labels other than the model's."""

    mode: str | None
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class Chat:
    """Settings of a chat's answer: most tokens of it."""

    max_new_tokens: int


class Question(NamedTuple):
    """Images, and the messages of a chat that shows them."""

    pictures: tuple[Picture, ...]
    messages: Sequence[dict[str, Any]] = ()


class Reply(NamedTuple):
    """Answer of a chat, and the tokens of its prompt."""

    answer: GeneratedAnswer
    prompt_tokens: int


class Answerer:
    """Answers batches of questions, called by one thread.

    Args:
        predictor: the model.
        most_pixels: of an image; ``None`` for what any image may have.
    """

    def __init__(self, predictor: Predictor, most_pixels: int | None) -> None:
        config = predictor.bundle.config
        # Each request has its own threshold; images are nobody's data set, and are not kept.
        every = config.infer.model_copy(update={"score_threshold": 0.0})
        data = config.data.model_copy(update={"image_cache": None})
        self._bundle = replace(
            predictor.bundle, config=config.model_copy(update={"infer": every, "data": data})
        )
        self._most_pixels = most_pixels
        self._predictor = lru_cache(LABEL_SETS_KEPT)(self._made_for)

    def __call__(
        self, settings: Detect | Chat, questions: Sequence[Question]
    ) -> list[Prediction] | list[Reply]:
        """Answer questions in one batch.

        Raises:
            QwendetError: if one of them cannot be answered.
        """
        try:
            # Images are read by the one function that reads images, from files that bear no client's name.
            with TemporaryDirectory(prefix="qwendet-serve-") as name:
                turns = [
                    self._written(question.pictures, Path(name) / str(index))
                    for index, question in enumerate(questions)
                ]
                if isinstance(settings, Chat):
                    return self._replies(settings, questions, turns)
                samples = [Sample(turn, where=turn.image) for (turn,) in turns]
                return list(self._predictor(settings.labels).predict(samples, settings.mode))
        except (torch.OutOfMemoryError, OSError) as error:
            what, fix = (
                "too little memory, or no room for temporary files",
                "send smaller images, or one later",
            )
            raise EnvironmentLacksError(what, "server", fix) from error

    def _made_for(self, labels: tuple[str, ...] | None) -> Predictor:
        config = self._bundle.config
        data = config.data.model_copy(update={} if labels is None else {"labels": labels})
        return Predictor(replace(self._bundle, config=config.model_copy(update={"data": data})))

    def _written(self, pictures: Sequence[Picture], folder: Path) -> list[Turn]:
        folder.mkdir()
        turns = []
        for picture in pictures:
            (folder / picture.place).write_bytes(picture.content)
            width, height = image_size(picture.place, folder, picture.place)
            if self._most_pixels is not None and width * height > self._most_pixels:
                what = f"the image has {width}×{height} pixels, and at most {self._most_pixels:,} are taken"
                raise RefusedError(413, what, picture.place, "shrink it")
            turns.append(Turn(picture.place, (), root=folder))
        return turns

    def _replies(
        self, chat: Chat, questions: Sequence[Question], turns: Sequence[Sequence[Turn]]
    ) -> list[Reply]:
        predictor = self._predictor(None)
        encoded = [
            predictor.encoder.encode_chat(question.messages, own, "messages")
            for question, own in zip(questions, turns, strict=True)
        ]
        batch = predictor.collator(encoded)
        require_left_padding(batch)
        detector = self._bundle.detector
        answers = generate_answers(
            detector,
            self._bundle.processor.tokenizer,
            to_device(batch, detector.device),
            chat.max_new_tokens,
        )
        lengths = [len(item.input_ids) for item in encoded]
        return [Reply(answer, length) for answer, length in zip(answers, lengths, strict=True)]
