"""A sample as the model's inputs: tokens, spans, pixels and boxes.

    system | user: image + request | assistant: answer, end | … | user: … | assistant: answer, end
                                                └ teacher ──┘                          └ student ──┘

Prompt and answer are tokenised apart and joined, so the prompt that inference sends is, token for
token, what training saw before the answer. Spans are half-open token ranges, known where the
tokens are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qwendet.boxes import xyxy_to_cxcywh
from qwendet.config.schema import DataConfig
from qwendet.data.archives import changed_at
from qwendet.data.images import open_image, resolve_image
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.encoding.prompts import Message, answer_text, conversation, request_text
from qwendet.encoding.resize import model_image_size, require_inside, rescale_xyxy
from qwendet.errors import DataError
from qwendet.families.chat import ASSISTANT, END_OF_TURN, IMAGE_TOKEN
from qwendet.families.family import Family, PixelLimits

Span = tuple[int, int]


class TooManyTokensError(DataError):
    """A sample is longer than ``data.max_tokens``."""


@dataclass(frozen=True)
class EncodedSample:
    """What the collator gets.

    Attributes:
        input_ids: ``(tokens,)`` int64.
        mm_token_type_ids: ``(tokens,)`` int64, 1 at image tokens; the positions depend on it.
        pixel_values: ``(patches, channels * frames * patch * patch)`` float32, images in order.
        image_grid_thw: ``(images, 3)`` int64; the student's image is the last.
        student_image_start: index of the student image's first token.
        image_size: width and height of the student's displayed image, pixels.
        teacher_assistant_spans: token ranges of the demonstrations' answers.
        student_assistant_spans: token range of the student's answer; none at inference.
        labels: what the student is asked, in the order of the request.
        scored: labels that the head scores, each with its token ids.
        boxes_cxcywh: ``(N, 4)`` float32, the student's boxes in the unit square.
        label_ids: ``(N,)`` int64, index into ``scored``.
        where: file and line, for error messages.
    """

    input_ids: Tensor
    mm_token_type_ids: Tensor
    pixel_values: Tensor
    image_grid_thw: Tensor
    student_image_start: int
    image_size: tuple[int, int]
    teacher_assistant_spans: tuple[Span, ...] = ()
    student_assistant_spans: tuple[Span, ...] = ()
    labels: tuple[str, ...] = ()
    scored: Mapping[str, Sequence[int]] = field(default_factory=dict)
    boxes_cxcywh: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    label_ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    where: str = ""


@lru_cache(maxsize=2)
def _opened_once(image: str, root: Path, where: str, changed: int) -> Image.Image:
    """An image of which several windows are shown one after the other; ``changed`` tells a new file."""
    return open_image(image, root, where)


@dataclass(frozen=True)
class _Picture:
    """One image as the processor made it."""

    pixel_values: Tensor
    grid_thw: tuple[int, int, int]
    displayed_size: tuple[int, int]


class Encoder:
    """Turns samples into :class:`EncodedSample`, for training and inference alike.

    ``labels`` is the label set in manifest order; ``settings`` has prompts and limits.
    """

    def __init__(self, processor: Any, labels: Sequence[str], settings: DataConfig) -> None:
        self.family: Family = processor.family
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self.labels = tuple(labels)
        self.settings = settings
        own = settings.system_prompt
        self.system_prompt = self.family.system_prompt if own is None else own
        self._image_token_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def encode(
        self,
        sample: Sample,
        *,
        with_answer: bool,
        images: Sequence[Image.Image] | None = None,
        scored: tuple[str, ...] | None = None,
    ) -> EncodedSample:
        """Encode one sample.

        Args:
            sample: demonstrations and student turn.
            with_answer: append the student's answer (training); without it the sequence ends where
                the answer begins (inference).
            images: of the turns, as displayed; ``None`` opens their files.
            scored: labels that the head scores; ``None`` is those that are asked.
        """
        for turn in (*sample.teachers, sample.student) if with_answer else sample.teachers:
            self._require_known_labels(turn, sample)
        sample = sample.asking(self.labels)
        turns, asked = (*sample.teachers, sample.student), sample.student.labels or ()
        given = [None] * len(turns) if images is None else images
        pictures = [self._picture(*pair, sample.where) for pair in zip(turns, given, strict=True)]
        answers = [self._answer(turn, picture) for turn, picture in zip(turns, pictures, strict=True)]
        ids, spans = self._tokens(turns, pictures, answers if with_answer else answers[:-1])
        encoded = replace(
            self._encoded(ids, pictures, sample.where),
            labels=asked,
            scored=self.label_tokens(scored or asked),
            teacher_assistant_spans=tuple(spans[: len(sample.teachers)]),
            student_assistant_spans=tuple(spans[len(sample.teachers) :]),
        )
        return self._with_targets(encoded, sample) if with_answer else encoded

    def encode_chat(
        self, messages: Sequence[Message], images: Sequence[Image.Image], where: str
    ) -> EncodedSample:
        """Encode a conversation of a client's own, up to where the model's answer begins.

        ``messages`` are for the chat template, without image tokens in their texts; ``images``, at least one,
        are as displayed, in the order in which the messages show them.
        """
        pictures = [self._processed(image) for image in images]
        ids = self._tokenize(self._rendered(messages), pictures)
        encoded = self._encoded(ids, pictures, where)
        return replace(encoded, labels=self.labels, scored=self.label_tokens(self.labels))

    def _encoded(self, ids: Sequence[int], pictures: Sequence[_Picture], where: str) -> EncodedSample:
        if len(ids) > self.settings.max_tokens:
            raise TooManyTokensError(
                f"{len(ids)} tokens, but data.max_tokens is {self.settings.max_tokens}",
                where,
                "raise data.max_tokens, or lower data.max_pixels or the number of teachers; nothing is cut",
            )
        input_ids = torch.tensor(ids, dtype=torch.int64)
        is_image = input_ids == self._image_token_id
        return EncodedSample(
            input_ids=input_ids,
            mm_token_type_ids=is_image.long(),
            pixel_values=torch.cat([picture.pixel_values for picture in pictures]),
            image_grid_thw=torch.tensor([picture.grid_thw for picture in pictures]),
            student_image_start=int(is_image.nonzero()[-self._num_tokens(pictures[-1])]),
            image_size=pictures[-1].displayed_size,
            where=where,
        )

    def chat(self, sample: Sample, *, resized: bool = True) -> tuple[list[Message], list[Image.Image]]:
        """The prompt of :meth:`encode` as messages and images in order, for a server that encodes by itself.

        ``resized`` images have the size that the model sees, so that the server has nothing to resize.
        """
        sample = sample.asking(self.labels)
        turns = (*sample.teachers, sample.student)
        images = [_displayed(turn, sample.where) for turn in turns]
        pictures = [self._unopened(image.size) for image in images]
        answers = [self._answer(turn, picture) for turn, picture in zip(turns, pictures, strict=True)]
        if resized:
            resample = self.image_processor.resample
            sizes = map(self._model_size, pictures)
            images = [image.resize(size, resample) for image, size in zip(images, sizes, strict=True)]
        return conversation(self.system_prompt, self._requests(turns), answers[:-1]), images

    @property
    def limits(self) -> PixelLimits:
        """Pixel limits of the processor."""
        processor = self.image_processor
        unit = processor.patch_size * processor.merge_size
        return PixelLimits(processor.size["shortest_edge"], processor.size["longest_edge"], unit)

    def token_counts(self, sample: Sample, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Count the tokens of a sample with its answer, and of the answer alone, without opening its images.

        ``sizes`` are displayed width and height of each image in pixels, the student's last.
        """
        sample = sample.asking(self.labels)
        turns = (*sample.teachers, sample.student)
        pictures = [self._unopened(size) for size in sizes]
        answers = [self._answer(turn, picture) for turn, picture in zip(turns, pictures, strict=True)]
        ids, spans = self._tokens(turns, pictures, answers)
        start, end = spans[-1]
        return len(ids), end - start

    def label_tokens(self, labels: Sequence[str]) -> dict[str, Sequence[int]]:
        """Token ids of each label text."""
        ids = self.tokenizer(list(labels), add_special_tokens=False)["input_ids"] if labels else []
        return dict(zip(labels, ids, strict=True))

    def _picture(self, turn: Turn, image: Image.Image | None, where: str) -> _Picture:
        image = _displayed(turn, where) if image is None else image
        require_inside(turn, image.size, where)
        return self._processed(image)

    def _processed(self, image: Image.Image) -> _Picture:
        features = self.image_processor(images=[image], return_tensors="pt")
        frames, rows, columns = features["image_grid_thw"][0].tolist()
        return _Picture(
            pixel_values=features["pixel_values"],
            grid_thw=(frames, rows, columns),
            displayed_size=image.size,
        )

    def _unopened(self, size: tuple[int, int]) -> _Picture:
        """An image as the processor would make it, without pixels."""
        patch = self.image_processor.patch_size
        width, height = self.limits.resized(size)
        return _Picture(torch.empty(0), (1, height // patch, width // patch), size)

    def _model_size(self, picture: _Picture) -> tuple[int, int]:
        return model_image_size(picture.grid_thw, self.image_processor.patch_size)

    def _answer(self, turn: Turn, picture: _Picture) -> str:
        size = self._model_size(picture)
        return answer_text(trainable_objects(turn), picture.displayed_size, size, self.family)

    def _tokens(
        self, turns: Sequence[Turn], pictures: Sequence[_Picture], answers: Sequence[str]
    ) -> tuple[list[int], list[Span]]:
        """Join prompt pieces and answers; returns the ids and the span of each answer."""
        messages = conversation(self.system_prompt, self._requests(turns), answers[: len(pictures) - 1])
        prompt = self._rendered(messages)
        ids: list[int] = []
        spans: list[Span] = []
        done = 0
        for index, picture in enumerate(pictures):
            last = index == len(pictures) - 1
            answer = answers[index] + END_OF_TURN if index < len(answers) else ""
            end = len(prompt) if last else self._find_answer(prompt, answer, done)
            ids += self._tokenize(prompt[done:end], [picture])
            if answer:
                answer_ids = self._tokenize(answer)
                spans.append((len(ids), len(ids) + len(answer_ids)))
                ids += answer_ids
            done = end + len(answer)
        return ids, spans

    def _find_answer(self, prompt: str, answer: str, after: int) -> int:
        """Where a demonstration's answer begins in the prompt."""
        turn = prompt.find(ASSISTANT, after)
        found = prompt.find(answer, turn) if turn >= 0 else -1
        if found < 0:
            raise DataError(
                "the chat template rewrites the answers of earlier turns",
                "chat template",
                f"use the published {self.family.name} template",
            )
        return found

    def _requests(self, turns: Sequence[Turn]) -> list[str]:
        """What stands behind each image."""
        return [request_text(self.settings.request, turn.labels or ()) for turn in turns]

    def _rendered(self, messages: Sequence[Message]) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.family.template_settings
        )
        return str(text)

    def _tokenize(self, text: str, pictures: Sequence[_Picture] = ()) -> list[int]:
        """Token ids of a text, each image token in it as many times as its picture takes."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = [place for place, one in enumerate(ids) if one == self._image_token_id]
        for place, picture in zip(reversed(places), reversed(pictures), strict=True):
            ids[place : place + 1] = [self._image_token_id] * self._num_tokens(picture)
        return ids

    def _num_tokens(self, picture: _Picture) -> int:
        frames, rows, columns = picture.grid_thw
        return frames * rows * columns // int(self.image_processor.merge_size) ** 2

    def _with_targets(self, encoded: EncodedSample, sample: Sample) -> EncodedSample:
        objects = trainable_objects(sample.student)
        places = {label: place for place, label in enumerate(encoded.scored)}
        boxes = rescale_xyxy([item.bbox_2d for item in objects], encoded.image_size, (1, 1))
        return replace(
            encoded,
            boxes_cxcywh=xyxy_to_cxcywh(torch.from_numpy(boxes).float()),
            label_ids=torch.tensor([places[item.desc] for item in objects], dtype=torch.int64),
        )

    def _require_known_labels(self, turn: Turn, sample: Sample) -> None:
        known = turn.labels or (*self.labels, *(sample.student.labels or ()))
        for item in turn.objects:
            if item.desc not in known:
                raise DataError(
                    f"the label {item.desc!r} is not in the label set ({', '.join(known[:10])})",
                    sample.where,
                    "add it to data.labels or correct it",
                )


def _displayed(turn: Turn, where: str) -> Image.Image:
    """A turn's image as displayed, or the window that it shows."""
    if turn.pixels is not None:
        return turn.pixels
    if turn.window is None:
        return open_image(turn.image, turn.root, where, turn.declared_size)
    changed = changed_at(resolve_image(turn.image, turn.root, where))
    return _opened_once(turn.image, turn.root, where, changed).crop(turn.window)


def trainable_objects(turn: Turn) -> list[DetectedObject]:
    """The objects a turn is trained on: all but crowds, whose box is no single object's."""
    return [item for item in turn.objects if not item.crowd]
