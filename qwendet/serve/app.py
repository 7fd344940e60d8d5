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
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from qwendet.data.samples import check_label
from qwendet.errors import QwendetError
from qwendet.inference.generation import GeneratedAnswer
from qwendet.inference.predictor import Predictor
from qwendet.serve.answers import Answerer, Chat, Detect, Question
from qwendet.serve.batcher import Batcher
from qwendet.serve.gate import Gate, Meters
from qwendet.serve.limits import Limits
from qwendet.serve.refusals import RefusedError, response_to, unfit
from qwendet.serve.requests import ChatBody, DetectBody, Picture, read_image

Body = TypeVar("Body", bound=BaseModel)
ROUTES = ("/", "/detect", "/v1/chat/completions", "/v1/models", "/health", "/metrics")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""The page loads nothing from elsewhere, and no other page may frame it."""


def create_app(predictor: Predictor, name: str, limits: Limits, token: str | None = None) -> FastAPI:
    """The server of a model, which clients call by a name; ``token`` is ``None`` where they need none."""
    service = Service(predictor, name, limits)
    app = FastAPI(openapi_url=None, lifespan=service.running)
    app.add_middleware(Gate, seconds=limits.seconds, token=token, meters=service.meters, routes=ROUTES)
    page = files("qwendet.serve").joinpath("page.html").read_text(encoding="utf-8")
    app.add_api_route("/", lambda: HTMLResponse(page, headers=PAGE_HEADERS), response_class=HTMLResponse)
    app.add_api_route("/detect", service.detect, methods=["POST"])
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"])
    app.add_api_route("/v1/models", service.models)
    app.add_api_route("/health", lambda: {"status": "ok"})
    app.add_api_route("/metrics", service.metrics)
    for kind in (QwendetError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _answer_error)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    """The answer to any error; a bug's traceback stays on this side."""
    if isinstance(error, QwendetError):
        return response_to(error)
    if isinstance(error, ClientDisconnect):  # answered to nobody, but counted
        return response_to(RefusedError(499, "the client has gone"))
    if isinstance(error, HTTPException):
        what = {404: "there is no such route", 405: f"{request.method} is not taken here"}
        said, fix = what.get(error.status_code, error.detail), f"known are {', '.join(ROUTES)}"
        return response_to(RefusedError(error.status_code, said, request.url.path, fix))
    bug = f"this is a bug: {type(error).__name__}"
    return response_to(RefusedError(500, bug, fix="see the server's log"))


class Service:
    """What the routes do; the arguments are those of :func:`create_app`."""

    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self.meters = Meters()
        self._predictor, self._name, self._limits = predictor, name, limits
        self._infer = predictor.bundle.config.infer
        self._origin = predictor.bundle.origin() if predictor.bundle.manifest is None else None
        self._batcher: Batcher

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """The threads, while the server runs."""
        answerer, note = Answerer(self._predictor), self.meters.batches.observe
        self._batcher = Batcher(answerer, self._infer.batch_size, self._limits.waiting, note)
        self.meters.waiting.set_function(lambda: self._batcher.waiting)
        yield
        await self._batcher.stop()

    async def detect(self, request: Request) -> Response:
        """What ``qwendet infer`` writes for the image, or for each of several."""
        body, pictures = await self._detect_body(request)
        self._predictor.sources(body.mode)  # refuses the head where there is none
        settings = Detect(body.mode, _checked(body.labels))
        least = self._infer.score_threshold if body.threshold is None else body.threshold
        lines = []
        for prediction in await self._ask(request, settings, [Question((picture,)) for picture in pictures]):
            kept = tuple(item for item in prediction.detections if item.score >= least)
            lines.append(replace(prediction, detections=kept).to_json(self._origin))
        content = lines[0] if body.images is None else f'{{"predictions": [{", ".join(lines)}]}}'
        return Response(content, media_type="application/json")

    async def _detect_body(self, request: Request) -> tuple[DetectBody, list[Picture]]:
        """The fields, and the images: the body, or those in one field."""
        kind, query, content = _kind(request), dict(request.query_params), await self._content(request)
        is_image = kind.startswith("image/") or kind == "application/octet-stream"
        body = _valid(DetectBody, 422, query if is_image else content, kind)
        given = {"image": body.image} if body.image is not None else {}
        given |= {f"images[{at}]": text for at, text in enumerate(body.images or ())}
        if is_image and not given:
            return body, [Picture(content, "image")]
        if is_image or query or (body.image is None) == (body.images is None):
            fix = (
                'send {"image": BASE64, …} or {"images": [BASE64, …], …} as JSON, or the image as the body'
                " and the rest as the query"
            )
            raise RefusedError(422, "expected one image, and all fields in one place", "image", fix)
        return body, [await self._read(text, place) for place, text in given.items()]

    async def chat(self, request: Request) -> dict[str, Any]:
        """A greedy answer in the shape of OpenAI's chat completions."""
        body = _valid(ChatBody, 400, await self._content(request), _kind(request))
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

    async def _content(self, request: Request) -> bytes:
        """The body; one that is too long is read to its end: a client reads no answer while it sends."""
        content, size, most = [], 0, self._limits.body_megabytes << 20
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                content.append(chunk)
        if size > most:
            what = f"the request has more than {self._limits.body_megabytes} MB"
            raise RefusedError(413, what, "body", "shrink the image, or send fewer of them at once")
        return b"".join(content)

    async def _read(self, text: str, place: str) -> Picture:
        return await asyncio.to_thread(read_image, text, place, self._limits)

    async def _ask(
        self, request: Request, settings: Detect | Chat, questions: Sequence[Question]
    ) -> list[Any]:
        """The batcher's answers, as long as the client waits for them."""
        asked = asyncio.ensure_future(self._batcher.ask_all(settings, questions))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise ClientDisconnect
            return asked.result()
        finally:
            asked.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _valid(body: type[Body], status: int, given: bytes | dict[str, str], kind: str) -> Body:
    """Fields of a query or of JSON; no other body, which a web page elsewhere could send without asking."""
    if isinstance(given, bytes) and kind != "application/json":
        fix = "send Content-Type: application/json, or for /detect image/jpeg, image/png …"
        raise RefusedError(415, f"a body of the kind {kind!r} is not read", "Content-Type", fix)
    try:
        if isinstance(given, bytes):
            return body.model_validate_json(given, strict=True)
        return body.model_validate(given)
    except ValidationError as error:
        raise unfit(error, body, status) from error


def _checked(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    checked = tuple(check_label(label.strip(), "labels", f"labels[{at}]") for at, label in enumerate(labels))
    if len(set(checked)) < len(checked):
        raise RefusedError(422, "a label is given twice", "labels", "name each once")
    return checked


def _log_probs(answer: GeneratedAnswer) -> list[dict[str, Any]]:
    """Each token with its log-probability, the end of turn left out."""
    starts = (0, *answer.token_ends)
    texts = [answer.text[start:end] for start, end in zip(starts, answer.token_ends, strict=False)]
    return [
        {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in zip(texts, answer.log_probs, strict=True)
    ]
