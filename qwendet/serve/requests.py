"""What clients may send, field by field; what could not be honoured is refused, never ignored."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import urllib.request
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qwendet.families import chat
from qwendet.serve.limits import Limits
from qwendet.serve.refusals import RefusedError

CONTROL_TOKENS = (chat.START_OF_TURN, chat.END_OF_TURN, chat.PADDING, *chat.IN_CONFIG)
MOST_LABELS, MOST_CHARACTERS, MOST_IMAGES = 1000, 200, 64
TURNS = re.compile(r"(system )?(user assistant )*user ")
ONLY = {
    "temperature": 0, "top_p": 1, "top_k": -1, "n": 1, "best_of": 1, "stream": False, "top_logprobs": 0,
    "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1,
}  # fmt: skip
"""Fields of OpenAI's and of vLLM's chat whose one value is what is done here anyway."""


class Picture(NamedTuple):
    """Bytes of an image's file, and the field that they were in."""

    content: bytes
    place: str


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectBody(_Body):
    """Fields of ``/detect``: JSON with images in base64, or the query where the body is the image."""

    image: str | None = None
    images: Annotated[list[str], Field(min_length=1, max_length=MOST_IMAGES)] | None = None
    labels: (
        Annotated[
            list[Annotated[str, Field(max_length=MOST_CHARACTERS)]],
            BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value),
            Field(min_length=1, max_length=MOST_LABELS),
        ]
        | None
    ) = None
    mode: Literal["head", "text", "both"] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


class _TextPart(_Body):
    type: Literal["text"]
    text: str


class _ImageUrl(_Body):
    url: str
    detail: Literal["auto"] | None = None


class _ImagePart(_Body):
    type: Literal["image_url"]
    image_url: _ImageUrl


class _Message(_Body):
    role: Literal["system", "user", "assistant"]
    content: Annotated[
        list[Annotated[_TextPart | _ImagePart, Field(discriminator="type")]],
        BeforeValidator(lambda given: [{"type": "text", "text": given}] if isinstance(given, str) else given),
        Field(min_length=1),
    ]


class ChatBody(_Body):
    """Body of ``/v1/chat/completions``, as OpenAI's clients send it."""

    model: str
    messages: list[_Message]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_what_is_done_anyway(cls, body: Any) -> Any:
        """Drop fields that ask for greedy decoding in one piece; refuse what asks for more."""
        if not isinstance(body, dict):
            return body
        for name in ONLY.keys() & body.keys():
            if body[name] is not None and body[name] != ONLY[name]:
                given, only = (json.dumps(values[name])[:60] for values in (body, ONLY))
                what = f"{name} is {given}, but answers are greedy, one a request, in one piece"
                raise ValueError(f"{what}; leave {name} out or send {only}")
        return {name: value for name, value in body.items() if name not in ONLY and value is not None}

    @model_validator(mode="after")
    def _require_conversation(self) -> ChatBody:
        if not TURNS.fullmatch("".join(f"{message.role} " for message in self.messages)):
            raise ValueError("messages: wrong order of turns; send [system,] user[, assistant, user …]")
        for index, message in enumerate(self.messages):
            kinds = [part.type for part in message.content]
            if "image_url" in kinds and message.role != "user":
                raise ValueError(f"messages[{index}]: only users show images; move it to a user's turn")
            if kinds != sorted(kinds):
                raise ValueError(
                    f"messages[{index}]: text before an image; send the images first, as trained"
                )
            texts = [part.text for part in message.content if isinstance(part, _TextPart)]
            found = next((token for token in CONTROL_TOKENS for text in texts if token in text), None)
            if found or (message.role == "system" and not "".join(texts)):
                what = f"the control token {found} in a text" if found else "an empty system text"
                raise ValueError(f"messages[{index}]: {what}; leave it out")
        if not self.image_urls():
            raise ValueError("messages: no image; send at least one as a data URL in image_url")
        if None not in (own := (self.max_tokens, self.max_completion_tokens)) and own[0] != own[1]:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        return self

    def image_urls(self) -> list[tuple[str, str]]:
        """URL and place of each image, in order."""
        return [
            (part.image_url.url, f"messages[{index}].content[{at}]")
            for index, message in enumerate(self.messages)
            for at, part in enumerate(message.content)
            if isinstance(part, _ImagePart)
        ]

    def turns(self) -> list[dict[str, Any]]:
        """The messages as the chat template takes them."""
        return [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text} if isinstance(part, _TextPart) else {"type": "image"}
                    for part in message.content
                ],
            }
            for message in self.messages
        ]


def read_image(text: str, place: str, limits: Limits) -> Picture:
    """The image of a base64 text, a data URL or, where it may be fetched, a URL; never of a file here."""
    head, comma, rest = text.partition(",")
    is_data_url = head[:5].lower() == "data:" and head.lower().endswith(";base64") and bool(comma)
    if not is_data_url and ":" in text[:16]:
        return Picture(_fetch(text, place, limits), place)
    try:
        encoded = "".join((rest if is_data_url else text).split())
        return Picture(base64.b64decode(encoded, validate=True), place)
    except (binascii.Error, ValueError) as error:
        what = f"neither base64 nor a data URL ({error})"
        raise RefusedError(422, what, place, "send the bytes of the image file in base64") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: what the prefix allows is the address that was sent, not where that leads."""


def _fetch(url: str, place: str, limits: Limits) -> bytes:
    if not url.startswith(limits.url_prefixes or ("\0",)):
        fix = "send the image itself, in base64; URLs are fetched only below a --allow-url of the server"
        raise RefusedError(422, "this address is not fetched", place, fix)
    try:
        with urllib.request.build_opener(_NoRedirects).open(url, timeout=limits.seconds) as answer:
            content: bytes = answer.read((limits.body_megabytes << 20) + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        what = f"the address cannot be fetched ({error})"
        raise RefusedError(422, what, place, "send the image itself") from error
    if len(content) > limits.body_megabytes << 20:
        raise RefusedError(413, f"the image has more than {limits.body_megabytes} MB", place, "shrink it")
    return content
