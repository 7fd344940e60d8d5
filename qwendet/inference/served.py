"""The same samples, prompts, frames and boxes as the Predictor's, but the text is a server's.

sample ─► encode ─► number of tokens ────────────────────┐ must be equal
└► messages, resized images ─► server ─► text ────┴► boxes in pixels of the displayed image
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample, Encoder
from qwendet.errors import ConfigError
from qwendet.inference.chat_server import ChatServer, Question, Reply, ServerError, with_images
from qwendet.inference.detections import Prediction, Source
from qwendet.inference.predictor import Predictor, config_to_ask
from qwendet.inference.text_answers import prediction_of, read_answer
from qwendet.inference.token_scores import GeneratedAnswer
from qwendet.loader import Interface, load_interface
from qwendet.progress import Advance, no_advance


class ServedPredictor:
    """Predicts with a model that a server runs; answers are ``kept`` in a file, by which a run goes on."""

    def __init__(self, bundle: Interface, server: ChatServer, kept: Path | None = None) -> None:
        self.bundle = bundle
        self.server = server
        self.encoder = bundle.encoder()
        self._answers = KeptAnswers(kept)

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
        require_text(mode)
        found: dict[int, Prediction] = {}
        settings = self.bundle.config.infer

        def take(number: int, item: EncodedSample, answer: GeneratedAnswer) -> None:
            text = read_answer(self.bundle, answer, item)
            found[number] = prediction_of(samples[number], item, (), text, settings)
            advance(len(found), "")

        waiting: dict[int, tuple[EncodedSample, str]] = {}

        def asking(number: int) -> Callable[[], Question | None]:
            def make() -> Question | None:
                item = self.encoder.encode(samples[number], with_answer=False)
                question = question_of(self.encoder, samples[number], settings.max_new_tokens)
                key = self._answers.key(self.server, question)
                if (answer := self._answers.find(key)) is not None:
                    take(number, item, answer)
                    return None
                waiting[number] = item, key
                return question

            return make

        def done(number: int, reply: Reply) -> None:
            item, key = waiting.pop(number)
            require_same_prompt(item, reply, self.server)
            answer = reply.answer()
            self._answers.keep(key, answer)
            take(number, item, answer)

        self.server.ask_all([asking(number) for number in range(len(samples))], done)
        return [found[number] for number in range(len(samples))]


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


class KeptAnswers:
    """Answers in a file, a line each, found again by what was asked; ``None`` keeps none."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._known: dict[str, GeneratedAnswer] = {}
        if file is not None and file.is_file():
            self._known = dict(_read_lines(file))

    @staticmethod
    def key(server: ChatServer, question: Question) -> str:
        """What stands for a question: a digest of it, of the server and of the model's name there."""
        asked = [server.url, server.model, asdict(question)]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def find(self, key: str) -> GeneratedAnswer | None:
        """The kept answer, if there is one."""
        return self._known.get(key)

    def keep(self, key: str, answer: GeneratedAnswer) -> None:
        """Write an answer down at once."""
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, asdict(answer)]) + "\n")


def _read_lines(file: Path) -> list[tuple[str, GeneratedAnswer]]:
    """Whole lines of the file; one that was cut when the run ended is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            key, record = json.loads(line)
            numbers = {name: tuple(record[name]) for name in ("token_ends", "log_probs")}
            found.append((key, GeneratedAnswer(**{**record, **numbers})))
        except (ValueError, TypeError, KeyError):
            continue
    return found


def predictor_of(
    model: str | Path, server: str | None, kept: Path | None = None, *, mode: str | None = None, **asked: Any
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
    return ServedPredictor(bundle, ChatServer.find(server, bundle), kept)
