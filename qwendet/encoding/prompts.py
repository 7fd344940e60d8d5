"""A sample's turns as chat messages: the one place where request and answer are worded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qwendet.answers.format import format_answer
from qwendet.data.samples import DetectedObject
from qwendet.encoding.resize import rescale_xyxy
from qwendet.families.family import Family

Message = dict[str, Any]


def request_text(template: str, labels: Sequence[str]) -> str:
    """Word the request: ``data.request`` with the labels in place of ``{labels}``.

    Example:
        >>> request_text("Locate every {labels}.", ["cat", "dog"])
        'Locate every cat, dog.'
    """
    return template.replace("{labels}", ", ".join(labels))


def answer_text(
    objects: Sequence[DetectedObject],
    displayed_size: tuple[int, int],
    model_size: tuple[int, int],
    family: Family,
) -> str:
    """Write the answer to a request in the family's frame and form, without its end of turn.

    Boxes are in pixels of the image as displayed; ``model_size`` is that of the resized one.
    """
    width, height = family.answer_size(model_size)
    boxes = rescale_xyxy([item.bbox_2d for item in objects], displayed_size, (width, height))
    boxes[:, :2] = np.minimum(boxes[:, :2], (width - 1, height - 1))  # a sliver at the edge stays inside
    return format_answer(
        [replace(item, bbox_2d=tuple(box)) for item, box in zip(objects, boxes.tolist(), strict=True)],
        family.answer_form,
    )


def conversation(system_prompt: str, requests: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Messages of demonstrations and student for ``apply_chat_template``, up to the last request.

        system | user: image + request | assistant: answer | ... | user: image + request

    There is one more request than answers; an empty ``system_prompt`` makes no system turn.
    """
    *shown, asked = (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]} for text in requests
    )
    messages: list[Message] = []
    if system_prompt:
        messages.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    for question, answer in zip(shown, answers, strict=True):
        messages += [question, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return [*messages, asked]
