"""The same samples, prompts, frames and boxes as the Predictor's, but the text is a server's.

sample ─► encode ─► number of tokens ────────────────────┐ must be equal
└► messages, resized images ─► server ─► text ────┴► boxes in pixels of the displayed image
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwendet.data.labels import label_chunks
from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample, Encoder
from qwendet.errors import ConfigError, DataError
from qwendet.inference.batches import Keep, Plan, Skipped, predict_in_memory
from qwendet.inference.chat_server import ChatServer, Question, Reply, ServerError, with_images
from qwendet.inference.detections import Prediction, Source, joined
from qwendet.inference.predictor import Predictor, config_to_ask
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
        views: dict[int, list[Sample]] = {}
        requests: dict[int, list[list[Sample]]] = {}
        found: dict[int, dict[tuple[int, int], Prediction]] = {}
        waiting: dict[_Place, EncodedSample] = {}

        def asked() -> Iterator[_Place]:
            for number in batches:
                try:
                    views[number] = tiles.views(plan.samples[number])
                except DataError as error:
                    if not skip_bad:
                        raise
                    keep(number, {number: Skipped(error.problems)})
                    continue
                requests[number] = [label_chunks(view, self.bundle.labels, most) for view in views[number]]
                found[number] = {}
                for view, chunks in enumerate(requests[number]):
                    yield from ((number, view, chunk) for chunk in range(len(chunks)))

        def make(place: _Place) -> Question | None:
            number, view, chunk = place
            if number not in found:  # another view of it could not be used
                return None
            try:
                sample = requests[number][view][chunk]
                waiting[place] = self.encoder.encode(sample, with_answer=False)
                return question_of(self.encoder, sample, settings.max_new_tokens)
            except DataError as error:
                if not skip_bad:
                    raise
                if found.pop(number, None) is not None:
                    keep(number, {number: Skipped(error.problems)})
                return None

        def done(place: _Place, reply: Reply) -> None:
            number, view, chunk = place
            item = waiting.pop(place)
            require_same_prompt(item, reply, self.server)
            if number not in found:
                return
            own, text = requests[number], read_answer(self.bundle, reply.answer(), item)
            found[number][view, chunk] = prediction_of(own[view][chunk], item, (), text, settings)
            if len(found[number]) == sum(map(len, own)):
                parts = found.pop(number)
                each = [
                    joined(
                        [parts[view, chunk] for chunk in range(len(chunks))],
                        settings.max_detections,
                        head_of_first=False,
                    )
                    for view, chunks in enumerate(requests.pop(number))
                ]
                keep(number, {number: tiles.merged(views.pop(number), each)})

        self.server.ask_all(asked(), make, done)


_Place = tuple[int, int, int]
"""Which sample, which view of it, which of its labels."""


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
    model: str | Path, server: str | None, *, mode: str | None = None, **asked: Any
) -> Predictor | ServedPredictor:
    """The model itself, or the server in its place; ``asked`` as for :meth:`Predictor.from_checkpoint`."""
    if server is None:
        return Predictor.from_checkpoint(model, mode=mode, **asked)
    require_text(mode)
    config, _ = config_to_ask(model, **asked)
    if config.infer.constrained:
        fix = "leave --constrained out, or --set infer.constrained=false"
        raise ConfigError("the answers of a server cannot be kept inside the grammar", "--server", fix)
    bundle = load_interface(config)
    return ServedPredictor(bundle, ChatServer.find(server, bundle))
