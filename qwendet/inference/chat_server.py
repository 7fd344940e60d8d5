"""A server that speaks OpenAI's chat protocol: vLLM, SGLang, ``transformers serve``, ``qwendet serve``.

question ─► POST /v1/chat/completions ─► reply      several at once, again after 408, 409, 429, 5xx
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from qwendet.encoding.prompts import Message
from qwendet.errors import ConfigError, EnvironmentLacksError
from qwendet.families.chat import END_OF_TURN, PADDING
from qwendet.families.family import Family
from qwendet.inference.generation import GeneratedAnswer, text_with_ends
from qwendet.loader import Interface

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger("qwendet")

RETRIES = 5
START_IT = "start the server (docs/serving.md), or correct the URL: http://HOST:PORT, with or without /v1"
LOG_PROBS, TOKEN_IDS = "logprobs", "return_token_ids"
"""What not every server takes: fields of a request for log-probabilities, and for token ids (vLLM)."""

Key = TypeVar("Key")
"""What tells one question from another."""


class ServerError(EnvironmentLacksError):
    """The server cannot be reached, or does not answer as the protocol says."""


@dataclass(frozen=True)
class Question:
    """What is asked; ``settings`` are further fields, and ``None`` leaves out ``temperature``, else 0."""

    messages: Sequence[Message]
    max_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a server answers, without its end of turn; ``None`` is what it does not tell.

    ``tokens`` (their bytes), ``log_probs`` and ``ids`` are those of the answer.
    """

    text: str
    truncated: bool
    prompt_tokens: int | None
    prompt_ids: tuple[int, ...] | None = None
    tokens: tuple[bytes, ...] | None = None
    log_probs: tuple[float, ...] | None = None
    ids: tuple[int, ...] | None = None

    def answer(self) -> GeneratedAnswer:
        """The same as a generated answer, of score 1 where there are no log-probabilities."""
        if self.tokens is None or self.log_probs is None:
            return GeneratedAnswer(self.text, (len(self.text),), (0.0,), self.truncated)
        _, ends = text_with_ends(self.tokens)
        return GeneratedAnswer(self.text, tuple(ends), self.log_probs, self.truncated)


@dataclass(frozen=True)
class ChatServer:
    """A server, and the model on it that is asked.

    Attributes:
        at_once: most requests at a time.
        asks: of :data:`LOG_PROBS` and :data:`TOKEN_IDS`, those that the server takes.
        max_model_len: most tokens of prompt and answer, where the server tells it.
    """

    url: str
    model: str
    family: Family
    at_once: int = 16
    timeout: float = 120.0
    asks: tuple[str, ...] = (LOG_PROBS, TOKEN_IDS)
    max_model_len: int | None = None

    @classmethod
    def find(cls, url: str, bundle: Interface) -> ChatServer:
        """Reach a server, choose the model, and learn what it can tell.

        The model's name there is ``infer.server_model``, else its path or the only one.
        """
        url = url.rstrip("/").removesuffix("/v1") + "/v1"
        if not url.startswith(("http://", "https://")):
            raise ConfigError("expected a URL", f"--server {url.removesuffix('/v1')}", START_IT)
        infer, family = bundle.config.infer, bundle.processor.family
        name = infer.server_model or bundle.config.model.path
        server = cls(url, name, family, infer.server_requests, infer.server_timeout)
        listed = asyncio.run(server.list_models())
        if listed and name not in listed:
            names = ", ".join(sorted(listed))
            if infer.server_model is not None or len(listed) > 1:
                fix = "name one: --set infer.server_model=NAME"
                raise ServerError(f"the server has no model {name!r}, but {names}", url, fix)
            server = replace(server, model=names)
        return replace(server, asks=server._taken(), max_model_len=listed.get(server.model))

    def ask_all(
        self,
        numbers: Iterable[Key],
        make: Callable[[Key], Question | None],
        done: Callable[[Key, Reply], None],
        at_once: int | None = None,
    ) -> None:
        """Ask, several at a time, and tell each reply with the number of its question when it comes.

        A question is made when its turn comes, in a thread of its own; ``None`` is not asked. The first that
        gets no usable reply ends the others.
        """

        async def ask_all() -> None:
            gate = asyncio.Semaphore(at_once or self.at_once)
            async with self._client() as client, asyncio.TaskGroup() as group:

                async def one(number: Key) -> None:
                    try:
                        question = await asyncio.to_thread(make, number)
                        if question is not None:
                            done(number, await self._ask(client, question))
                    finally:
                        gate.release()

                for number in numbers:
                    await gate.acquire()
                    group.create_task(one(number))

        try:
            asyncio.run(ask_all())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    def ask(self, question: Question) -> Reply:
        """Ask one question; raises as :meth:`ask_all`."""
        replies: list[Reply] = []
        self.ask_all([0], lambda _: question, lambda _, reply: replies.append(reply))
        return replies[0]

    def _client(self, retries: int = RETRIES) -> AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=self.timeout,
            max_retries=retries,
        )

    async def list_models(self) -> dict[str, int | None]:
        """The names of the models that the server lists, and their lengths."""
        from openai import InternalServerError, NotFoundError, OpenAIError

        try:
            async with self._client(retries=1) as client:
                page = await client.models.list()
                return {model.id: getattr(model, "max_model_len", None) for model in page.data}
        except (NotFoundError, InternalServerError):  # some have no such list
            return {}
        except (OpenAIError, AttributeError, TypeError) as error:
            raise self._explained(error) from error

    def _taken(self) -> tuple[str, ...]:
        """Which of :attr:`asks` the server takes and answers; what it lacks is said."""
        content = [{"type": "image"}, {"type": "text", "text": "a"}]
        probe = with_images([{"role": "user", "content": content}], [Image.new("RGB", (64, 64))])
        for asks in (self.asks, (LOG_PROBS,), ()):
            try:
                reply = replace(self, asks=asks).ask(Question(probe, 1))
                break
            except RefusedError:
                if not asks:
                    raise
        found = {LOG_PROBS: reply.log_probs, TOKEN_IDS: reply.prompt_ids}
        if reply.prompt_tokens is None:
            what = "does not report how many tokens a prompt has: template and pixel limits are not compared"
            logger.warning("%s %s", self.url, what)
        if reply.log_probs is None:
            logger.warning("%s gives no log-probabilities: every box of an answer has score 1", self.url)
        return tuple(name for name in self.asks if found[name] is not None)

    async def _ask(self, client: AsyncOpenAI, question: Question) -> Reply:
        from openai import OpenAIError

        extra = {name: True for name in self.asks if name != LOG_PROBS}
        if self.family.template_settings:
            extra["chat_template_kwargs"] = dict(self.family.template_settings)  # type: ignore[assignment]
        if self.family.answer_form == "box_tokens":
            extra["skip_special_tokens"] = False
        settings: dict[str, Any] = {"temperature": 0, **question.settings}
        if LOG_PROBS in self.asks:
            settings[LOG_PROBS] = True
        try:
            answer = await client.chat.completions.create(
                model=self.model,
                messages=question.messages,  # type: ignore[arg-type]
                max_tokens=question.max_tokens,
                extra_body=extra or None,
                **{name: value for name, value in settings.items() if value is not None},
            )
            return _reply(answer)
        except (OpenAIError, AttributeError, TypeError, IndexError) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> ServerError:
        """A failed request in plain words."""
        import openai

        where, kind = f"{self.url} (model {self.model})", ServerError
        text = error.response.text if isinstance(error, openai.APIStatusError) else str(error)
        words = " ".join(text.split())[:300]
        if isinstance(error, openai.APIStatusError):
            words = f"{error.status_code}: {words}"
        match error:
            case openai.APITimeoutError():
                what = f"no whole answer within {self.timeout:g} seconds"
                fix = "see what the server is doing, or allow more: --set infer.server_timeout=600"
            case openai.APIConnectionError():
                what, fix = f"the server cannot be reached ({error.__cause__ or error})", START_IT
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                what = f"the server refuses the token ({words})"
                fix = "put the server's token into the environment variable OPENAI_API_KEY"
            case openai.NotFoundError():
                what = f"there is no such route or model ({words})"
                fix = f"{START_IT}; name the model with --set infer.server_model=NAME"
            case openai.BadRequestError() | openai.UnprocessableEntityError():
                what, kind = f"the server refuses the request ({words})", RefusedError
                fix = "as it says: --set infer.server_model=…, fewer infer.max_new_tokens, a longer context"
            case openai.APIStatusError():
                what, fix = f"the server fails ({words})", "see its log"
            case _:
                what, fix = f"this is no server of OpenAI's chat protocol ({words})", START_IT
        return kind(what, where, fix)


class RefusedError(ServerError):
    """The server does not take a field of the request, or its length."""


def _reply(answer: Any) -> Reply:
    """Read a chat completion."""
    choice, usage = answer.choices[0], answer.usage
    text = choice.message.content
    if not isinstance(text, str):
        given = "a thought alone" if getattr(choice.message, "reasoning_content", None) else "no text"
        raise TypeError(f"the message holds {given}")
    written, ids = getattr(choice.logprobs, "content", None), getattr(choice, "token_ids", None)
    while written and written[-1].token in (END_OF_TURN, PADDING, ""):
        written = written[:-1]
    if ids is not None and written is not None:
        ids = tuple(ids[: len(written)])
    prompt_ids = getattr(answer, "prompt_token_ids", None)
    return Reply(
        text=text.removesuffix(END_OF_TURN),
        truncated=choice.finish_reason == "length",
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        prompt_ids=None if prompt_ids is None else tuple(prompt_ids),
        tokens=None if written is None else tuple(bytes(t.bytes or t.token.encode()) for t in written),
        log_probs=None if written is None else tuple(token.logprob for token in written),
        ids=ids if written is not None else None,
    )


def with_images(messages: Sequence[Message], images: Sequence[Image.Image]) -> list[Message]:
    """Put images into the places that messages have for them, as PNG in data URLs."""
    remaining = iter(images)

    def part(content: dict[str, Any]) -> dict[str, Any]:
        if content["type"] != "image":
            return content
        next(remaining).save(png := io.BytesIO(), "PNG")
        data = base64.b64encode(png.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    return [{**message, "content": [part(item) for item in message["content"]]} for message in messages]
