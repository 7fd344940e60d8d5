"""Greedy text answers with the probability of every token."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
)

from qwendet.data.collate import Batch
from qwendet.model.constraint import AnswerConstraint, token_bytes
from qwendet.model.product import product

PROMPT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")


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


class GreedyLogProbs(LogitsProcessor):
    """Notes the log-probability of the token that each step will choose.

    It is the model's own: a token that a constraint forces keeps the low score that the model gave it.

    Args:
        constraint: takes away the tokens that must not be chosen; ``None`` leaves all.
    """

    def __init__(self, constraint: AnswerConstraint | None = None) -> None:
        self.constraint = constraint
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note ``(B,)`` and return the scores that may be chosen from."""
        log_probs = scores.float().log_softmax(-1)  # one pass; logsumexp takes five
        if self.constraint is None:
            self.steps.append(log_probs.amax(-1))
            return scores
        scores = self.constraint(input_ids, scores)
        self.steps.append(log_probs.gather(-1, scores.argmax(-1, keepdim=True))[:, 0])
        return scores


@torch.inference_mode()
def generate_answers(
    vlm: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Any,
    batch: Batch,
    max_new_tokens: int,
    constraint: AnswerConstraint | None = None,
) -> list[GeneratedAnswer]:
    """Answer a batch of prompts, greedily.

    There is no sampling and no repetition penalty, whatever the model's own generation settings say,
    so the tokens are those that training made likeliest.

    Args:
        vlm: the model.
        tokenizer: its tokenizer.
        batch: prompts, padded on the left.
        max_new_tokens: most tokens of an answer.
        constraint: made for this batch and ``max_new_tokens``; ``None`` lets the model write anything.
    """
    log_probs = GreedyLogProbs(constraint)
    end_ids = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_ids),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    generator: Any = vlm  # its generate() is annotated with a protocol that its own class does not meet
    with _without_own_settings(vlm), _quick_logits(vlm.lm_head):
        sequences = generator.generate(
            **{key: batch[key] for key in PROMPT_KEYS},
            generation_config=settings,
            logits_processor=LogitsProcessorList([log_probs]),
        )
    new = sequences[:, batch["input_ids"].shape[1] :].tolist()
    steps = torch.stack(log_probs.steps, dim=1).tolist()
    return [_answer(tokenizer, ids, row, end_ids) for ids, row in zip(new, steps, strict=True)]


@contextmanager
def _without_own_settings(vlm: Qwen2_5_VLForConditionalGeneration) -> Iterator[None]:
    """Set the model's own settings aside.

    ``generate`` fills from them what ours leave open: the published models' repetition penalty, for one.
    """
    own, vlm.generation_config = vlm.generation_config, GenerationConfig()
    try:
        yield
    finally:
        vlm.generation_config = own


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


def _answer(tokenizer: Any, ids: list[int], log_probs: list[float], end_ids: set[int]) -> GeneratedAnswer:
    length = next((index for index, token in enumerate(ids) if token in end_ids), len(ids))
    text, ends = decode_with_ends(tokenizer, ids[:length])
    return GeneratedAnswer(text, tuple(ends), tuple(log_probs[:length]), truncated=length == len(ids))


def decode_with_ends(tokenizer: Any, ids: list[int]) -> tuple[str, list[int]]:
    """Decode byte-level tokens and tell where in the text each one ends.

    A character whose bytes are spread over several tokens belongs to the last of them.

    Returns:
        The text, and for each token the number of characters complete after it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces: list[str] = []
    ends: list[int] = []
    length = 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        pieces.append(decoder.decode(token_bytes(token)))
        length += len(pieces[-1])
        ends.append(length)
    rest = decoder.decode(b"", final=True)
    if rest:
        pieces.append(rest)
        ends[-1] += len(rest)
    return "".join(pieces), ends
