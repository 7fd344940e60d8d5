"""What a server answers and what its checkpoint does, to the same questions; each is asked when first needed.

checkpoint ─► prompt, greedy answer, log-probabilities of any answer ─┐
server ─────► the same; asked again, all at once, without settings ───┴► checks
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwendet.data.samples import Sample
from qwendet.encoding.collate import to_device
from qwendet.encoding.encode import EncodedSample
from qwendet.encoding.prompts import conversation, request_text
from qwendet.inference.cached_forward import AnswersInProgress
from qwendet.inference.chat_server import LOG_PROBS, ChatServer, Question, RefusedError, Reply
from qwendet.inference.generation import GeneratedAnswer, generate_answers
from qwendet.inference.predictor import Predictor
from qwendet.inference.served import question_of
from qwendet.model.detector import Qwen25VLWithDetection

MOST_TOKENS = 256
"""Of an answer that is compared."""
FLOAT32_NOISE = 1e-3
"""Nats that log-probabilities in float32 may differ by between two libraries; vLLM's differ by 1e-5."""
MULTIPLE = 4.0
"""Half precision: how many times its own rounding the server may differ."""


@dataclass(frozen=True)
class Forced:
    """Log-probabilities of an answer that another wrote, and how far each is behind the likeliest token's."""

    log_probs: tuple[float, ...]
    behind: tuple[float, ...]


class Observed:
    """A server, its checkpoint (loaded, and its folder), and what both are asked about."""

    def __init__(
        self, predictor: Predictor, server: ChatServer, samples: Sequence[Sample], checkpoint: Path
    ) -> None:
        self.predictor = predictor
        self.server = server
        self.samples = samples
        self.checkpoint = checkpoint
        self._forced: dict[tuple[bool, int, tuple[int, ...]], Forced] = {}
        self.max_tokens = min(MOST_TOKENS, predictor.bundle.config.infer.max_new_tokens)

    @property
    def tells_log_probs(self) -> bool:
        """Whether the server gives log-probabilities."""
        return LOG_PROBS in self.server.asks

    # The checkpoint

    @cached_property
    def items(self) -> list[EncodedSample]:
        """The prompts."""
        return [self.predictor.encoder.encode(sample, with_answer=False) for sample in self.samples]

    @cached_property
    def own(self) -> list[GeneratedAnswer]:
        """Greedy answers of the checkpoint."""
        detector, tokenizer = self.predictor.bundle.detector, self.predictor.bundle.processor.tokenizer
        batches = [to_device(self.predictor.collator([item]), detector.device) for item in self.items]
        return [generate_answers(detector, tokenizer, batch, self.max_tokens)[0] for batch in batches]

    def forced(self, number: int, reply: Reply, *, in_other_precision: bool = False) -> Forced:
        """How likely the checkpoint finds an answer about a sample; empty where its tokens are not known."""
        key = (in_other_precision, number, tuple(self.ids_of(reply)))
        if key not in self._forced:
            own = self.predictor.bundle.detector
            self._forced[key] = self._forced_by(
                self.in_other_precision if in_other_precision else own, number, reply
            )
        return self._forced[key]

    def _forced_by(self, detector: Qwen25VLWithDetection, number: int, reply: Reply) -> Forced:
        ids = self.ids_of(reply)
        return _forced(self._logits(detector, self.items[number], ids), ids) if ids else Forced((), ())

    @torch.inference_mode()
    def _logits(self, detector: Qwen25VLWithDetection, item: EncodedSample, ids: Sequence[int]) -> Tensor:
        """What the checkpoint says of each token of an answer, ``(tokens, V)``, one read at a time."""
        progress = AnswersInProgress(detector, to_device(self.predictor.collator([item]), detector.device))
        steps = [progress.read_prompts()]
        for token in ids[:-1]:
            progress.keep([1])
            steps.append(progress.read([[token]]))
        return torch.cat(steps, dim=1)[0]

    def ids_of(self, reply: Reply) -> Sequence[int]:
        """Token ids of an answer's text: the server's if they spell it, else read again if as many."""
        tokenizer = self.predictor.bundle.processor.tokenizer
        if reply.ids is not None and tokenizer.decode(reply.ids) == reply.text:
            return reply.ids
        ids: list[int] = tokenizer(reply.text, add_special_tokens=False)["input_ids"]
        return ids if reply.tokens is None or len(ids) == len(reply.tokens) else ()

    def misfit(self, number: int, detector: Qwen25VLWithDetection | None = None) -> float:
        """How far an answer of the server is from what a model would say, nats, in its worst token.

        The difference of the log-probabilities where the server tells its own, else how far its tokens are
        behind the model's likeliest; NaN where the answer has no tokens that are known, infinite where the
        server's numbers are none. Without a ``detector`` the model is the checkpoint.
        """
        reply = self.replies[number]
        forced = self._forced_by(detector, number, reply) if detector else self.forced(number, reply)
        return _misfit(forced, reply) if forced.behind else math.nan

    @cached_property
    def misfits(self) -> dict[int, float]:
        """:meth:`misfit` by the checkpoint, of the answers whose tokens are known."""
        found = {number: self.misfit(number) for number in range(len(self.samples))}
        return {number: misfit for number, misfit in found.items() if not math.isnan(misfit)}

    @cached_property
    def rounding(self) -> float:
        """Largest difference of the checkpoint's log-probabilities to those in the other precision."""
        found = 0.0
        for number, answer in enumerate(self.own):
            reply = Reply(answer.text, answer.truncated, None)
            other = self.forced(number, reply, in_other_precision=True)
            found = max([found, *_differences(self.forced(number, reply).log_probs, other.log_probs)])
        return found

    @cached_property
    def share_of_rounding(self) -> float:
        """How far the server is from the checkpoint in float32, divided by how far the checkpoint itself is.

        Means over all tokens of the server's answers: about 1 of a sound server, whose kernels round at other
        places but as much; 0 of one that computes in float32. NaN where the checkpoint is in float32, or the
        server tells no log-probabilities.
        """
        theirs, ours = [], []
        if self.predictor.bundle.detector.dtype != torch.float32:
            for number, reply in enumerate(self.replies):
                exact = self.forced(number, reply, in_other_precision=True).log_probs
                if exact and reply.log_probs is not None:
                    theirs += _differences(reply.log_probs, exact)
                    ours += _differences(self.forced(number, reply).log_probs, exact)
        return sum(theirs) / sum(ours) if any(ours) else math.nan

    @cached_property
    def in_other_precision(self) -> Qwen25VLWithDetection:
        """The checkpoint in bfloat16 where it computes in float32, and in float32 where it does not."""
        detector = self.predictor.bundle.detector
        dtype = torch.bfloat16 if detector.dtype == torch.float32 else torch.float32
        return Qwen25VLWithDetection(copy.deepcopy(detector.vlm).to(dtype), None).eval()

    @cached_property
    def tolerance(self) -> float:
        """Nats by which a sound server may differ."""
        is_float32 = self.predictor.bundle.detector.dtype == torch.float32
        return FLOAT32_NOISE if is_float32 else max(FLOAT32_NOISE, MULTIPLE * self.rounding)

    # The server

    def asked(
        self, *, resized: bool = True, max_tokens: int | None = None, at_once: bool = False, **settings: Any
    ) -> list[Reply]:
        """Ask about each sample, one at a time; or about all at once, the last one first."""

        def make(number: int) -> Question:
            most, sample = max_tokens or self.max_tokens, self.samples[number]
            question = question_of(self.predictor.encoder, sample, most, resized=resized)
            return replace(question, settings=settings)

        found: dict[int, Reply] = {}
        numbers = range(len(self.samples))
        order = reversed(numbers) if at_once else numbers
        self.server.ask_all(order, make, found.__setitem__, len(numbers) if at_once else 1)
        return [found[number] for number in numbers]

    @cached_property
    def replies(self) -> list[Reply]:
        """Answers about each sample."""
        return self.asked()

    @cached_property
    def unresized(self) -> list[Reply]:
        """The first token about each image as it is displayed, which the server resizes by itself."""
        return self.asked(resized=False, max_tokens=1)

    @cached_property
    def without_image(self) -> Reply | None:
        """The prompt without its image, and its answer; ``None`` where a server needs an image."""
        try:
            return self.server.ask(Question(self.text_messages(), self.max_tokens))
        except RefusedError:
            return None

    @cached_property
    def misfit_of_text(self) -> float:
        """As :meth:`misfit`, of the answer to the prompt without its image; infinite where there is none."""
        reply = self.without_image
        if reply is None or not (ids := self.ids_of(reply)):
            return math.inf
        vlm, prompt = self.predictor.bundle.detector.vlm, self.text_ids()
        with torch.inference_mode(), self.predictor.bundle.detector.computing():
            inputs = torch.tensor([[*prompt, *ids]], device=vlm.device)
            logits = vlm(input_ids=inputs).logits[0, len(prompt) - 1 : -1].float()
        return _misfit(_forced(logits, ids), reply)

    def text_messages(self) -> list[dict[str, Any]]:
        """System text and request, without an image."""
        bundle = self.predictor.bundle
        request = request_text(bundle.config.data.request, bundle.request_labels)
        messages = conversation(self.predictor.encoder.system_prompt, [request], [])
        return [
            {**message, "content": [part for part in message["content"] if part["type"] == "text"]}
            for message in messages
        ]

    def text_ids(self, **template: Any) -> list[int]:
        """Token ids of that prompt; ``template`` changes what the chat template is given."""
        tokenizer, family = self.predictor.bundle.processor.tokenizer, self.predictor.bundle.processor.family
        messages = template.pop("messages", self.text_messages())
        given = {"add_generation_prompt": True, **family.template_settings, **template}
        text = tokenizer.apply_chat_template(messages, tokenize=False, **given)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _forced(logits: Tensor, ids: Sequence[int]) -> Forced:
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(-1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
    return Forced(tuple(own.tolist()), tuple((log_probs.amax(-1) - own).tolist()))


def _misfit(forced: Forced, reply: Reply) -> float:
    if reply.log_probs is None:
        return max(forced.behind)
    off = _differences(forced.log_probs, reply.log_probs)
    return max(off) if all(map(math.isfinite, off)) else math.inf


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [abs(one - other) for one, other in zip(ours, theirs, strict=True)]


def is_near_tie(observed: Observed, number: int, reply: Reply) -> bool:
    """Whether an answer differs from the checkpoint's only where both tokens are as likely."""
    forced = observed.forced(number, reply)
    return bool(forced.behind) and next((b for b in forced.behind if b > 0), 0.0) <= observed.tolerance
