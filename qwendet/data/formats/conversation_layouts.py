"""Records of the tools that train on conversations, whatever their layout, as one: messages and images.

messages, images, objects: {ref, bbox}   ms-swift           conversations, from / value   LLaVA, Qwen
messages or conversations, images        LLaMA-Factory      content in parts, image_url   OpenAI
instruction, input, output, images       LLaMA-Factory, Alpaca
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from qwendet.data.formats.box_frames import BoxFrame
from qwendet.data.formats.json_stream import records
from qwendet.errors import DataError
from qwendet.families.chat import LABEL_TEXT

ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
IMAGE, BOX, REFERENCE = "<image>", "<bbox>", "<ref-object>"
"""Marks that stand for an image, and for ms-swift's objects."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One record.

    Attributes:
        messages: role and text of each; an image in it stands as ``<image>``.
        frame: of the boxes, where the record declares it.
    """

    messages: tuple[tuple[str, str], ...]
    images: tuple[str, ...]
    where: str
    frame: BoxFrame | None = None


def is_conversations(file: Path) -> bool:
    """Whether the first record of a JSON or JSONL file is a conversation."""
    with suppress(DataError, OSError):
        return any(_messages(record) for _, record in islice(records(file), 1))
    return False


def read_conversation(record: Any, where: str) -> Conversation:
    """Read a record."""
    said = _messages(record)
    if not said:
        shown = f", got {record}" if isinstance(record, str) else ""
        what = f"expected an object with messages, conversations, or instruction and output{shown}"
        raise DataError(what, where, "leave this record out, or write it as the others are")
    given = record.get("images") or record.get("image") or []
    images = [_path(one) for one in (given if isinstance(given, list) else [given])]
    messages = []
    for role, content in said:
        text, own = _content(content)
        images += own
        messages.append((ROLES.get(role, role), text))
    marks = sum(text.count(IMAGE) for _, text in messages)
    first = next((at for at, (role, _) in enumerate(messages) if role == "user"), None)
    if images and not marks and first is not None:  # the tools put them there
        messages[first] = ("user", IMAGE * len(images) + messages[first][1])
    elif marks != len(images):
        raise DataError(f"{len(images)} images and {marks} marks {IMAGE}", where, "give each image its mark")
    objects = record.get("objects")
    frame: BoxFrame | None = None
    if isinstance(objects, dict) and isinstance(objects.get("bbox"), list):
        frame = "fractions" if objects.get("bbox_type") == "norm1" else "pixels"
        messages = _filled_in(messages, objects, where)
    return Conversation(tuple(messages), tuple(images), where, frame)


def _messages(record: Any) -> list[tuple[str, Any]]:
    """Role and content of each message; none if the record is no conversation."""
    if not isinstance(record, dict):
        return []
    said = record.get("messages") or record.get("conversations")
    if isinstance(said, list) and all(isinstance(one, dict) for one in said):
        return [(str(one.get("role", one.get("from"))), one.get("content", one.get("value"))) for one in said]
    for asked, more, answered in (("instruction", "input", "output"), ("query", "", "response")):
        if isinstance(record.get(asked), str) and isinstance(record.get(answered), str):
            history = record.get("history")
            turns = [*(history if isinstance(history, list) else [])]
            turns.append((f"{record[asked]}\n{record.get(more) or ''}", record[answered]))
            pairs = [turn for turn in turns if isinstance(turn, list | tuple) and len(turn) == 2]
            return [message for pair in pairs for message in zip(("user", "assistant"), pair, strict=True)]
    return []


def _content(content: Any) -> tuple[str, list[str]]:
    """Text of a message, a mark for each image in parts, and these images."""
    text, images = "", []
    for part in content if isinstance(content, list) else [content]:
        image = (part.get("image") or part.get("image_url")) if isinstance(part, dict) else None
        if image is not None:
            text += IMAGE
            images.append(_path(image))
        else:
            text += str((part.get("text") if isinstance(part, dict) else part) or "")
    return text, images


def _path(image: Any) -> str:
    return str((image.get("path") or image.get("url") or "") if isinstance(image, dict) else image)


def _filled_in(
    messages: list[tuple[str, str]], objects: Mapping[str, Any], where: str
) -> list[tuple[str, str]]:
    """Messages with ms-swift's ``objects`` in place of their marks, in order."""
    text = "".join(text for _, text in messages)
    values_of = {}
    for mark, key in ((BOX, "bbox"), (REFERENCE, "ref")):
        values, count = objects.get(key), text.count(mark)
        values = values if isinstance(values, list) else []
        is_shared = key == "ref" and values and count % len(values) == 0
        if count != len(values) and not is_shared:
            what = f"{count} marks {mark} and {len(values)} values in objects.{key}"
            raise DataError(what, where, "give each mark its value")
        values_of[mark] = cycle(values)

    def value(mark: re.Match[str]) -> str:
        own = next(values_of[mark[0]])
        return json.dumps(own) if mark[0] == BOX else LABEL_TEXT.format(label=own)

    return [(role, re.sub(f"{BOX}|{REFERENCE}", value, text)) for role, text in messages]
