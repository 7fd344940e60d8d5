"""A sample's turns as chat messages: the one place where the request is worded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]


def request_text(template: str, labels: Sequence[str]) -> str:
    """Word the request.

    Args:
        template: ``data.request``, with the placeholder ``{labels}``.
        labels: the label set in manifest order.

    Example:
        >>> request_text("Locate every {labels}.", ["cat", "dog"])
        'Locate every cat, dog.'
    """
    return template.replace("{labels}", ", ".join(labels))


def conversation(system_prompt: str, request: str, answers: Sequence[str]) -> list[Message]:
    """Messages of demonstrations and student, up to the last request.

        system | user: image + request | assistant: answer | ... | user: image + request

    Args:
        system_prompt: text of the system turn; empty for none.
        request: text after each image.
        answers: answer texts of the demonstrations, one a demonstration.

    Returns:
        Messages for ``apply_chat_template``.
    """
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request}]}
    messages: list[Message] = []
    if system_prompt:
        messages.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    for answer in answers:
        messages += [question, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return [*messages, question]
