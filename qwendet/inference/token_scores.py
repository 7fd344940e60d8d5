"""Answers with the log-probability of every token, and what a piece of text scores by them.

tokens       [ {"  bbox _2d  ": …  1   2   3  ,  … ]
log_probs    0  0   0    0   0  …  -.1 -.3 -.2 0  … 0
token_ends   1  3   7   10  13  …                          text[start:end] is scored by what reaches into it
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qwendet.inference.constrained_decoding import token_bytes
from qwendet.inference.verification import Choice


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer.

    Attributes:
        text: what was written, without the end of turn.
        token_ends: for each token, the index in ``text`` after its last whole character.
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


def scored_answer(tokenizer: Any, written: Sequence[Choice], end_ids: set[int]) -> GeneratedAnswer:
    """The answer of what was written, the end of turn included if it was reached."""
    truncated = written[-1].token not in end_ids
    kept = written if truncated else written[:-1]
    text, ends = decode_with_ends(tokenizer, [choice.token for choice in kept])
    return GeneratedAnswer(text, tuple(ends), tuple(choice.log_prob for choice in kept), truncated)


def decode_with_ends(tokenizer: Any, ids: list[int]) -> tuple[str, list[int]]:
    """Decode byte-level tokens and tell where in the text each one ends: :func:`text_with_ends`."""
    return text_with_ends(token_bytes(token) for token in tokenizer.convert_ids_to_tokens(ids))


def text_with_ends(tokens: Iterable[bytes]) -> tuple[str, list[int]]:
    """Join tokens; the text, and for each token the number of characters complete after it.

    A character whose bytes are spread over several tokens belongs to the last of them.
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
