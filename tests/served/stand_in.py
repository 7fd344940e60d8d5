"""A chat server in this process: transformers' own generate behind vLLM's protocol, with faults to plant."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image


def same(value: Any) -> Any:
    return value


@dataclass
class StandIn:
    """A model and how it is served; each field after ``max_model_len`` is a place for a fault.

    Attributes:
        vlm: the transformers class.
        processor: images by PIL.
        tells: of ``logprobs`` and ``return_token_ids``, what the server takes; the rest is refused.
    """

    vlm: Any
    processor: Any
    name: str = "stand-in"
    tells: tuple[str, ...] = ("logprobs", "return_token_ids")
    max_model_len: int = 4096
    image: Callable[[Image.Image], Image.Image] = same
    messages: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = same
    prompt: Callable[[str], str] = same
    settings: dict[str, Any] = field(default_factory=dict)
    answer: Callable[[str], str] = same
    log_prob: Callable[[float], float] = same
    most_tokens: int = 10_000
    respond: Callable[[StandIn, dict[str, Any]], Any] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        messages, images = self.messages(body["messages"]), []
        turns = []
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] == "image_url":
                    data = base64.b64decode(part["image_url"]["url"].split(",")[1])
                    images.append(self.image(Image.open(io.BytesIO(data)).convert("RGB")))
            shown = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
            turns.append({"role": message["role"], "content": shown})
        tokenizer = self.processor.tokenizer
        given = body.get("chat_template_kwargs", {})
        text = self.prompt(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **given)
        )
        with self.lock:
            return self._generated(body, text, images)

    def _generated(self, body: dict[str, Any], text: str, images: list[Image.Image]) -> dict[str, Any]:
        tokenizer = self.processor.tokenizer
        inputs = self.processor(text=[text], images=images or None, return_tensors="pt")
        most = min(body["max_tokens"], self.most_tokens)
        with torch.inference_mode():
            made = self.vlm.generate(
                **inputs,
                max_new_tokens=most,
                return_dict_in_generate=True,
                output_logits=True,
                **{"do_sample": False, **self.settings},
            )
        prompt_ids = inputs["input_ids"][0].tolist()
        ids = made.sequences[0, len(prompt_ids) :].tolist()
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        is_whole = ids[-1] in ends
        written = [
            {
                "token": tokenizer.decode([token]),
                "bytes": list(tokenizer.decode([token]).encode()),
                "logprob": self.log_prob(float(step[0].float().log_softmax(-1)[token])),
                "top_logprobs": [],
            }
            for token, step in zip(ids, made.logits, strict=True)
        ]
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop" if is_whole else "length",
            "message": {
                "role": "assistant",
                "content": self.answer(tokenizer.decode(ids[:-1] if is_whole else ids)),
            },
        }
        reply: dict[str, Any] = {
            "id": "0",
            "object": "chat.completion",
            "created": 0,
            "model": self.name,
            "choices": [choice],
            "usage": {
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": len(ids),
                "total_tokens": len(prompt_ids) + len(ids),
            },
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": written}
        if body.get("return_token_ids"):
            reply["prompt_token_ids"], choice["token_ids"] = prompt_ids, ids
        return reply


class Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def send(self, content: Any, status: int = 200) -> None:
        is_text = isinstance(content, str)
        data = content.encode() if is_text else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if is_text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        own = self.stand_in
        self.send(
            {
                "object": "list",
                "data": [{"id": own.name, "object": "model", "max_model_len": own.max_model_len}],
            }
        )

    def do_POST(self) -> None:
        own = self.stand_in
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        own.requests.append(body)
        refused = [
            name for name in ("logprobs", "return_token_ids") if name in body and name not in own.tells
        ]
        if refused:
            self.send({"detail": f"Unsupported fields in the request: {refused}"}, 422)
            return
        if own.respond is not None:
            self.send(*own.respond(own, body))
            return
        self.send(own.complete(body))


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """Serve until the block ends; gives the URL."""
    handler = type("OwnHandler", (Handler,), {"stand_in": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
