"""The routes of the server."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from qwendet.data.samples import check_label
from qwendet.errors import QwendetError
from qwendet.inference.detections import Prediction
from qwendet.inference.predictor import Predictor
from qwendet.serve.answers import Answerer, Chat, Detect, Question
from qwendet.serve.batcher import Batcher
from qwendet.serve.gate import Gate, Meters, page_response
from qwendet.serve.limits import Limits
from qwendet.serve.refusals import RefusedError, response_to, unfit
from qwendet.serve.requests import ChatBody, DetectBody, Picture, read_image

GONE = RefusedError(499, "the client has gone")
"""Told to nobody, but counted."""
Body = TypeVar("Body", bound=BaseModel)
ROUTES = ("/", "/detect", "/v1/chat/completions", "/v1/models", "/health", "/metrics")


def create_app(predictor: Predictor, name: str, limits: Limits, token: str | None = None) -> FastAPI:
    """The server of a model.

    Args:
        predictor: the model.
        name: that clients call it by.
        limits: of what they may ask for.
        token: that they must bear; ``None`` for none.
    """
    service = Service(predictor, name, limits)
    app = FastAPI(openapi_url=None, lifespan=service.running)
    most_open = limits.waiting + 2 * predictor.bundle.config.infer.batch_size
    app.add_middleware(
        Gate, limits=limits, most_open=most_open, token=token, meters=service.meters, routes=ROUTES
    )
    page = files("qwendet.serve").joinpath("page.html").read_text(encoding="utf-8")
    app.add_api_route("/", lambda: page_response(page), response_class=Response)
    app.add_api_route("/detect", service.detect, methods=["POST"])
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"])
    app.add_api_route("/v1/models", service.models)
    app.add_api_route("/health", lambda: {"status": "ok"})
    app.add_api_route("/metrics", service.metrics)
    app.add_exception_handler(QwendetError, _told)
    app.add_exception_handler(HTTPException, _told)
    app.add_exception_handler(ClientDisconnect, _told)
    app.add_exception_handler(Exception, _told)
    return app


async def _told(request: Request, error: Exception) -> Response:
    """The answer to any error; a bug's traceback stays on this side."""
    if isinstance(error, QwendetError):
        return response_to(error)
    if isinstance(error, HTTPException):
        what = {404: "there is no such route", 405: f"{request.method} is not taken here"}
        said, fix = what.get(error.status_code, error.detail), f"known are {', '.join(ROUTES)}"
        return response_to(RefusedError(error.status_code, said, request.url.path, fix))
    if isinstance(error, ClientDisconnect):
        return response_to(GONE)
    bug = f"this is a bug: {type(error).__name__}"
    return response_to(RefusedError(500, bug, fix="see the server's log"))


class Service:
    """What the routes do.

    Args:
        predictor: the model.
        name: that clients call it by.
        limits: of what they may ask for.
    """

    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self.meters = Meters()
        self._predictor = predictor
        self._name = name
        self._limits = limits
        self._infer = predictor.bundle.config.infer
        self._origin = predictor.bundle.origin() if predictor.bundle.manifest is None else None
        self._answerer = Answerer(predictor, limits.pixels)
        self._batcher: Batcher

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """The model's thread, while the server runs."""
        self._batcher = Batcher(
            self._answerer, self._infer.batch_size, self._limits.waiting, self.meters.batches.observe
        )
        self.meters.waiting.set_function(lambda: self._batcher.waiting)
        yield
        await self._batcher.stop()

    async def detect(self, request: Request) -> Response:
        """What ``qwendet infer`` writes for the image, or for each of several."""
        body, pictures = await self._detect_body(request)
        self._predictor.sources(body.mode)  # refuses the head where there is none
        settings = Detect(body.mode, _checked(body.labels))
        least = self._infer.score_threshold if body.threshold is None else body.threshold
        found: list[Prediction] = await self._ask(request, settings, [Question((p,)) for p in pictures])
        lines = []
        for prediction in found:
            kept = tuple(item for item in prediction.detections if item.score >= least)
            lines.append(replace(prediction, detections=kept).to_json(self._origin))
        content = lines[0] if body.images is None else f'{{"predictions": [{", ".join(lines)}]}}'
        return Response(content, media_type="application/json")

    async def chat(self, request: Request) -> dict[str, Any]:
        """A greedy answer in the shape of OpenAI's chat completions."""
        body = _parsed(ChatBody, await request.body(), _kind(request), 400)
        if body.model != self._name:
            what = f"there is no model {body.model!r:.60}"
            raise RefusedError(404, what, "model", f"the model is {self._name!r}")
        most = body.max_completion_tokens or body.max_tokens or self._infer.max_new_tokens
        if most > self._infer.max_new_tokens:
            what = f"max_tokens is {most}, and at most {self._infer.max_new_tokens} are written"
            fix = "ask for fewer, or serve with --set infer.max_new_tokens=N"
            raise RefusedError(400, what, "max_tokens", fix)
        pictures = [await self._read(url, place) for url, place in body.image_urls()]
        question = Question(tuple(pictures), body.turns())
        ((answer, prompt_tokens),) = await self._ask(request, Chat(most), [question])
        written = len(answer.log_probs) + (not answer.truncated)  # the end of turn is one, too
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": {"content": _log_probs(answer)} if body.logprobs else None,
            "finish_reason": "length" if answer.truncated else "stop",
        }
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._name,
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": written,
                "total_tokens": prompt_tokens + written,
            },
        }

    async def models(self) -> dict[str, Any]:
        """The one model, as OpenAI's clients list it, with what it looks for."""
        has_head = self._predictor.bundle.detector.head is not None
        own = {
            "labels": self._predictor.bundle.labels,
            "modes": ["head", "text", "both"] if has_head else ["text"],
            "score_threshold": self._infer.score_threshold,
            "picture_threshold": self._infer.picture_threshold,
        }
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "qwendet", **own}
        return {"object": "list", "data": [model]}

    async def metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(self.meters.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _detect_body(self, request: Request) -> tuple[DetectBody, list[Picture]]:
        """The fields, and the images: the body, or those in one field."""
        kind, content, query = _kind(request), await request.body(), dict(request.query_params)
        is_image = kind.startswith("image/") or kind == "application/octet-stream"
        body = _fields(DetectBody, query) if is_image else _parsed(DetectBody, content, kind, 422)
        ways = [is_image, body.image is not None, body.images is not None]
        if sum(ways) != 1 or (query and not is_image):
            fix = (
                'send {"image": BASE64, …} or {"images": [BASE64, …], …} as JSON, or the image as the body'
                " and the rest as the query"
            )
            raise RefusedError(422, "expected one image, and all fields in one place", "image", fix)
        if is_image:
            return body, [Picture(content, "image")]
        if body.images is None:
            return body, [await self._read(body.image or "", "image")]
        return body, [await self._read(text, f"images[{at}]") for at, text in enumerate(body.images)]

    async def _read(self, text: str, place: str) -> Picture:
        return await asyncio.to_thread(read_image, text, place, self._limits)

    async def _ask(
        self, request: Request, settings: Detect | Chat, questions: Sequence[Question]
    ) -> list[Any]:
        """The batcher's answers, as long as the client waits for them."""
        asked = asyncio.ensure_future(self._batcher.ask_all(settings, questions))
        gone = asyncio.ensure_future(_disconnected(request))
        awaited: set[asyncio.Future[Any]] = {asked, gone}
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise GONE
            return asked.result()
        finally:
            asked.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _parsed(body: type[Body], content: bytes, kind: str, status: int) -> Body:
    """A JSON body; no other kind, which a web page elsewhere could send without asking."""
    if kind != "application/json":
        fix = "send Content-Type: application/json, or for /detect image/jpeg, image/png …"
        raise RefusedError(415, f"a body of the kind {kind!r} is not read", "Content-Type", fix)
    try:
        return body.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise unfit(error, body, status) from error


def _fields(body: type[Body], query: dict[str, str]) -> Body:
    try:
        return body.model_validate(query)
    except ValidationError as error:
        raise unfit(error, body, 422) from error


def _checked(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    checked = tuple(
        check_label(label.strip(), "labels", f"labels[{index}]") for index, label in enumerate(labels)
    )
    if len(set(checked)) < len(checked):
        raise RefusedError(422, "a label is given twice", "labels", "name each once")
    return checked


def _log_probs(answer: Any) -> list[dict[str, Any]]:
    """Each token with its log-probability, the end of turn left out."""
    starts = (0, *answer.token_ends)
    texts = [answer.text[start:end] for start, end in zip(starts, answer.token_ends, strict=False)]
    return [
        {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in zip(texts, answer.log_probs, strict=True)
    ]
