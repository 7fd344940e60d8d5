"""The same samples, prompts, frames and boxes as the Predictor's, but the text is a server's.

sample ─► encode ─► number of tokens ────────────────────┐ must be equal
└► messages, resized images ─► server ─► text ────┴► boxes in pixels of the displayed image
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

from qwendet.data.labels import label_chunks
from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample, Encoder
from qwendet.errors import ConfigError
from qwendet.inference.asked import Asked, config_to_ask
from qwendet.inference.batches import Keep, Plan, Results, Skipped, predict_in_memory, skipping
from qwendet.inference.chat_server import ChatServer, Question, Reply, ServerError, with_images
from qwendet.inference.detections import Prediction, Source, joined
from qwendet.inference.predictor import Predictor
from qwendet.inference.text_answers import prediction_of, read_answer
from qwendet.inference.tiles import Tiles
from qwendet.loader import Interface, load_interface
from qwendet.progress import Advance, no_advance


class ServedPredictor:
    """Predicts with a model that a server runs."""

    def __init__(self, bundle: Interface, server: ChatServer) -> None:
        self.bundle = bundle
        self.server = server
        self.encoder = bundle.encoder()

    def origin(self) -> dict[str, Any]:
        """Who trained the model, how it is asked, and which server answers."""
        return self.bundle.origin() | {"server": self.server.url, "server_model": self.server.model}

    def sources(self, mode: str | None = None) -> tuple[Source, ...]:
        """Text alone."""
        require_text(mode)
        return ("text",)

    def predict_all(
        self,
        samples: Sequence[Sample],
        mode: str | None = None,
        advance: Advance = no_advance,
    ) -> list[Prediction]:
        """Predict samples, in order, as :meth:`Predictor.predict_all` does."""
        plan = Plan(samples, 1)
        return predict_in_memory(partial(self.predict_batches, plan, mode=mode), plan, advance)

    batch_size = 1

    def plan(self, samples: Sequence[Sample], window: int) -> Plan:
        """Each sample for itself: the server makes the batches."""
        return Plan(samples, 1, window)

    def predict_batches(
        self,
        plan: Plan,
        batches: Iterable[int],
        keep: Keep,
        *,
        mode: str | None = None,
        skip_bad: bool = False,
    ) -> None:
        """Ask about samples, as :meth:`Predictor.predict_batches` does.

        A request without an answer, or whose prompt has other tokens than the checkpoint's, ends the run.
        """
        require_text(mode)
        settings, most = self.bundle.config.infer, self.bundle.config.data.labels_per_request
        tiles = Tiles(settings, self.encoder.limits)
        skipped: Results = {}

        def tell(number: int, result: Skipped) -> None:
            if skipped.setdefault(number, result) is result:  # no other request about it was skipped
                keep(number, {number: result})

        def requests() -> Iterator[_Request]:
            for number in batches:
                image = _Image(number)
                with skipping(skip_bad, partial(tell, number)):
                    image.views = tiles.views(plan.samples[number])
                for view in image.views:
                    chunks = label_chunks(view, self.bundle.labels, most)
                    image.requests.append([_Request(image, chunk) for chunk in chunks])
                yield from chain(*image.requests)

        def question(request: _Request) -> Question | None:
            if request.image.number not in skipped:
                with skipping(skip_bad, partial(tell, request.image.number)):
                    request.item = self.encoder.encode(request.sample, with_answer=False)
                    return question_of(self.encoder, request.sample, settings.max_new_tokens)
            return None

        def take(request: _Request, reply: Reply) -> None:
            image, item = request.image, request.item
            assert item is not None
            require_same_prompt(item, reply, self.server)
            text = read_answer(self.bundle, reply.answer(), item)
            request.found, request.item = prediction_of(request.sample, item, (), text, settings), None
            parts = [[one.found for one in own if one.found is not None] for own in image.requests]
            if image.number not in skipped and [*map(len, parts)] == [*map(len, image.requests)]:
                each = [joined(own, settings, head_of_first=False) for own in parts]
                keep(image.number, {image.number: tiles.merged(image.views, each)})

        self.server.ask_all(requests(), question, take)


@dataclass
class _Image:
    """A sample that is asked about: its number, its views, and the requests about each of these."""

    number: int
    views: list[Sample] = field(default_factory=list)
    requests: list[list[_Request]] = field(default_factory=list)


@dataclass
class _Request:
    """A view of an image with some of its labels; encoded while it waits, then with what was found."""

    image: _Image
    sample: Sample
    item: EncodedSample | None = None
    found: Prediction | None = None


def question_of(encoder: Encoder, sample: Sample, max_tokens: int, *, resized: bool = True) -> Question:
    """A sample as a question to a server; images in the model's size, or as they are displayed."""
    messages, images = encoder.chat(sample, resized=resized)
    return Question(with_images(messages, images), max_tokens)


def require_text(mode: str | None) -> None:
    """Refuse what a server cannot answer."""
    if mode not in (None, "auto", "text"):
        raise ConfigError(f"mode is {mode}, but a server answers in text alone", "--mode", "use --mode text")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a server needs no launcher", "--server", "start qwendet without torchrun")


def require_same_prompt(item: EncodedSample, reply: Reply, server: ChatServer) -> None:
    """Refuse an answer to another prompt than the checkpoint's."""
    expected = len(item.input_ids)
    if reply.prompt_tokens not in (None, expected):
        raise ServerError(
            f"the prompt has {reply.prompt_tokens} tokens on the server and {expected} here: template or"
            " pixel limits differ",
            item.where,
            f"qwendet check-served {server.url} --checkpoint DIR names the cause",
        )


def predictor_of(
    model: str | Path, server: str | None, **asked: Unpack[Asked]
) -> Predictor | ServedPredictor:
    """The model itself, or the server in its place."""
    if server is None:
        return Predictor.from_checkpoint(model, **asked)
    require_text(asked.pop("mode", None))
    config, _ = config_to_ask(model, **asked)
    if config.infer.constrained:
        fix = "leave --constrained out, or --set infer.constrained=false"
        raise ConfigError("the answers of a server cannot be kept inside the grammar", "--server", fix)
    bundle = load_interface(config)
    return ServedPredictor(bundle, ChatServer.find(server, bundle))
