"""Greedy text answers with the probability of every token."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from qwendet.encoding.collate import Batch
from qwendet.inference.constrained_decoding import AnswerConstraint, token_bytes
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.product import product

_OF_A_PROMPT = ("input_ids", "pixel_values", "image_grid_thw")


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer.

    Attributes:
        text: what was written, without the end of turn.
        token_ends: for each token, the index in ``text`` after its last whole character.
        log_probs: log-probability of each token.
        truncated: the answer was cut at the most tokens.
    """

    text: str
    token_ends: tuple[int, ...]
    log_probs: tuple[float, ...]
    truncated: bool

    def score(self, start: int, end: int) -> float:
        """exp(mean log-probability) of the tokens that reach into ``text[start:end]``, in ``[0, 1]``."""
        starts = (0, *self.token_ends)[:-1]
        own = [
            log_prob
            for log_prob, token_start, token_end in zip(self.log_probs, starts, self.token_ends, strict=True)
            if token_start < end and token_end > start
        ]
        return math.exp(sum(own) / len(own)) if own else 0.0


class AnswersInProgress:
    """The answers of a batch that have not ended; one that has leaves the batch.

    Args:
        detector: the model.
        batch: prompts, padded on the left.

    Attributes:
        rows: which of the batch they are.
    """

    def __init__(self, detector: Qwen25VLWithDetection, batch: Batch) -> None:
        self.vlm = detector.vlm
        self._computing = detector.computing
        self.rows = list(range(len(batch["input_ids"])))
        self._inputs = {key: batch[key] for key in _OF_A_PROMPT}
        mask = batch["attention_mask"]
        self._attention_mask = None if mask.all() else mask  # attention is quicker without
        self._position_ids = batch["position_ids"]
        self._cache = DynamicCache(config=detector.config.text_config)

    def read(self) -> Tensor:
        """Read the prompts, then what was written last; float32 logits ``(B, V)`` of what comes next."""
        with self._computing():
            outputs = self.vlm(
                **self._inputs,
                attention_mask=self._attention_mask,
                position_ids=self._position_ids,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: Tensor = outputs.logits[:, -1].float()
        return logits

    def write(self, tokens: Tensor, end_ids: set[int]) -> None:
        """Write a token behind each answer, ``(B,)``; those that it ends leave."""
        stay = [index for index, token in enumerate(tokens.tolist()) if token not in end_ids]
        if len(stay) < len(self.rows):
            tokens = self._keep(stay, tokens)
        self._inputs = {"input_ids": tokens[:, None]}
        self._position_ids = self._position_ids[:, :, -1:] + 1
        if self._attention_mask is not None:
            self._attention_mask = F.pad(self._attention_mask, (0, 1), value=1)

    def _keep(self, stay: list[int], tokens: Tensor) -> Tensor:
        """Let the other answers leave; the tokens of those that stay."""
        indices: Any = torch.tensor(stay, dtype=torch.int64, device=tokens.device)
        self.rows = [self.rows[index] for index in stay]
        self._position_ids = self._position_ids[:, indices]
        self._cache.reorder_cache(indices)  # recurrent states too
        if self._attention_mask is not None:
            self._attention_mask = self._attention_mask[indices]
        return tokens[indices]


@torch.inference_mode()
def generate_answers(
    detector: Qwen25VLWithDetection,
    tokenizer: Any,
    batch: Batch,
    max_new_tokens: int,
    constraint: AnswerConstraint | None = None,
) -> list[GeneratedAnswer]:
    """Answer a batch of prompts, greedily.

    There is no sampling and no repetition penalty, whatever the model's own generation settings say,
    so the tokens are those that training made likeliest. Their probability is the model's own: a token
    that a constraint forces keeps the low one that the model gave it.

    Args:
        detector: the model.
        tokenizer: its tokenizer.
        batch: prompts, padded on the left.
        max_new_tokens: most tokens of an answer.
        constraint: made for this batch and ``max_new_tokens``; ``None`` lets the model write anything.
    """
    end_ids = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    answers = AnswersInProgress(detector, batch)
    written: list[list[tuple[int, float]]] = [[] for _ in answers.rows]  # tokens with their log-probabilities
    # One context for all steps: the weights are cast once.
    with detector.computing(), _quick_logits(detector.vlm.lm_head):
        for _ in range(max_new_tokens):
            logits = answers.read()
            tokens = (logits if constraint is None else constraint(answers.rows, logits)).argmax(-1)
            log_probs = _log_probs(logits, tokens)
            steps = zip(answers.rows, tokens.tolist(), log_probs.tolist(), strict=True)
            for row, token, log_prob in steps:
                written[row].append((token, log_prob))
                if constraint is not None:
                    constraint.write(row, token)
            answers.write(tokens, end_ids)
            if not answers.rows:
                break
    return [_answer(tokenizer, row, end_ids) for row in written]


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """``log softmax(logits)[token]`` of ``(B, V)`` and ``(B,)``."""
    below = logits - logits.amax(-1, keepdim=True)
    of_tokens = below.gather(-1, tokens[:, None])[:, 0]
    return of_tokens - below.exp_().sum(-1).log_()


@contextmanager
def _quick_logits(lm_head: nn.Module) -> Iterator[None]:
    """Compute logits by :func:`product`; hooks on the layer, such as those that gather a shard, still run."""
    if type(lm_head) is not nn.Linear or "forward" in vars(lm_head):  # an adapter's, or replaced already
        yield
        return
    layer: Any = lm_head
    layer.forward = lambda states: product(states, layer.weight, layer.bias)
    try:
        yield
    finally:
        del layer.forward


def _answer(tokenizer: Any, written: list[tuple[int, float]], end_ids: set[int]) -> GeneratedAnswer:
    truncated = written[-1][0] not in end_ids
    kept = written if truncated else written[:-1]
    text, ends = decode_with_ends(tokenizer, [token for token, _ in kept])
    return GeneratedAnswer(text, tuple(ends), tuple(log_prob for _, log_prob in kept), truncated)


def decode_with_ends(tokenizer: Any, ids: list[int]) -> tuple[str, list[int]]:
    """Decode byte-level tokens and tell where in the text each one ends: :func:`text_with_ends`."""
    return text_with_ends(token_bytes(token) for token in tokenizer.convert_ids_to_tokens(ids))


def text_with_ends(tokens: Iterable[bytes]) -> tuple[str, list[int]]:
    """Join tokens and tell where in the text each one ends.

    A character whose bytes are spread over several tokens belongs to the last of them.

    Returns:
        The text, and for each token the number of characters complete after it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces: list[str] = []
    ends: list[int] = []
    length = 0
    for token in tokens:
        pieces.append(decoder.decode(token))
        length += len(pieces[-1])
        ends.append(length)
    rest = decoder.decode(b"", final=True)
    if rest:
        pieces.append(rest)
        ends[-1] += len(rest)
    return "".join(pieces), ends
