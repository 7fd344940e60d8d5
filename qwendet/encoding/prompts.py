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
    """Word the request.

    Args:
        template: ``data.request``, with the placeholder ``{labels}``.
        labels: what is asked, in order.

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
    """Write the answer to a request, without its end of turn.

    Args:
        objects: boxes in pixels of the image as displayed.
        displayed_size: its width and height.
        model_size: width and height of the resized image.
        family: of the model, whose frame and form it is.
    """
    width, height = family.answer_size(model_size)
    boxes = rescale_xyxy([item.bbox_2d for item in objects], displayed_size, (width, height))
    boxes[:, :2] = np.minimum(boxes[:, :2], (width - 1, height - 1))  # a sliver at the edge stays inside
    return format_answer(
        [replace(item, bbox_2d=tuple(box)) for item, box in zip(objects, boxes.tolist(), strict=True)],
        family.answer_form,
    )


def conversation(system_prompt: str, requests: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Messages of demonstrations and student, up to the last request.

        system | user: image + request | assistant: answer | ... | user: image + request

    Args:
        system_prompt: text of the system turn; empty for none.
        requests: text after each image, the student's last.
        answers: answer texts of the demonstrations.

    Returns:
        Messages for ``apply_chat_template``.
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
