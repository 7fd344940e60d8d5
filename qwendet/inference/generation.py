"""Greedy text answers, token for token the model's likeliest, several tokens a forward where a draft holds.

prompts ─► read ─► likeliest ─► verify ─► written ──► ended? ─► scored answer
▲                              │
└── block: newest token, draft ◄

    block       1   2   3   ,   ␣   4        the newest token, and a draft
    likeliest   2   3   ,   ␣   5   …        after each of them
    written     2   3   ,   ␣   5            the draft holds up to its first token that is not the likeliest

Logits of a row differ by rounding between a block and the row alone. Where the two highest are closer than
that, greedy decoding itself is a coin; such a token is decided by reading the row alone.

read: cached_forward     draft: drafts     what may be written: constrained_decoding
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from qwendet.encoding.collate import Batch
from qwendet.inference.cached_forward import AnswersInProgress
from qwendet.inference.constrained_decoding import AnswerConstraint, token_bytes
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadOutput
from qwendet.model.product import product

ROUNDING = 1e-3
"""Of float32 logits between a block and a row alone; docs/performance.md has how much was seen."""


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer, and the log-probability of each of its tokens.

        tokens       [ {"  bbox _2d  ": …  1   2   3  ,  … ]
        log_probs    0  0   0    0   0  …  -.1 -.3 -.2 0  … 0
        token_ends   1  3   7   10  13  …          text[start:end] is scored by what reaches into it

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


class Drafter(Protocol):
    """Drafts one answer."""

    def write(self, tokens: Sequence[int]) -> None:
        """Take note of what was written."""

    def draft(self) -> list[int]:
        """Tokens that may come next; may be none."""


class Choice(NamedTuple):
    """A token: the likeliest, its log-probability among all tokens, its logit's lead over the next."""

    token: int
    log_prob: float
    margin: float


@torch.inference_mode()
def generate_answers(
    detector: Qwen25VLWithDetection,
    tokenizer: Any,
    batch: Batch,
    max_new_tokens: int,
    constraint: AnswerConstraint | None = None,
    drafting: Callable[[HeadOutput | None], Sequence[Drafter]] | None = None,
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
        drafting: makes a drafter of each answer from what the head found. ``None``, and a model with a
            recurrent state, writes one token at a time.
    """
    end_ids = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    progress = AnswersInProgress(detector, batch)
    written: list[list[Choice]] = [[] for _ in progress.rows]
    drafts: list[list[int]] = [[] for _ in progress.rows]
    # One context for all steps: the weights are cast once.
    with detector.computing(), _quick_logits(detector.vlm.lm_head):
        drafters: Sequence[Drafter] = []
        if drafting is None:
            logits = progress.read_prompts()
        else:
            logits, head = progress.read_prompts_with_head()
            drafters = drafting(head)
        is_drafted = bool(drafters) and progress.can_cut_back
        # In half precision too many are closer than rounding to read each of them again.
        is_decided_alone = is_drafted and detector.dtype.itemsize >= 4
        while True:
            is_block = is_decided_alone and logits.shape[:2].numel() > 1
            found, counts, stay = likeliest(logits, with_margins=is_block), [], []
            for index, row in enumerate(progress.rows):
                alone = partial(progress.alone, index) if is_block else None
                choices = verified(found[index], logits[index], drafts[row], alone, row, constraint, end_ids)
                written[row] += choices
                counts.append(len(choices))
                left = max_new_tokens - len(written[row])
                if choices[-1].token not in end_ids and left:
                    stay.append(index)
                if drafters:
                    drafters[row].write([choice.token for choice in choices])
                    drafts[row] = drafters[row].draft()[: left - 1] if is_drafted else []
            progress.keep(counts)
            progress.leave(stay)
            if not progress.rows:
                break
            logits = progress.read([[written[row][-1].token, *drafts[row]] for row in progress.rows])
    return [_scored(tokenizer, row, end_ids) for row in written]


def likeliest(logits: Tensor, *, with_margins: bool = True) -> list[list[Choice]]:
    """What ``(B, K, V)`` logits find likeliest in each place; without margins all leads are infinite."""
    tokens = logits.argmax(-1)
    highest = logits.topk(2).values if with_margins else logits.amax(-1, keepdim=True)
    log_probs = -(logits - highest[..., :1]).exp_().sum(-1).log_()
    margins = highest[..., 0] - highest[..., 1] if with_margins else torch.full_like(log_probs, torch.inf)
    rows = zip(tokens.tolist(), log_probs.tolist(), margins.tolist(), strict=True)
    return [list(map(Choice, *row)) for row in rows]


def verified(
    found: Sequence[Choice],
    logits: Tensor,
    draft: Sequence[int],
    alone: Callable[[int], Tensor] | None,
    row: int,
    constraint: AnswerConstraint | None,
    end_ids: set[int],
) -> list[Choice]:
    """The tokens that follow the newest one of a row: at least one.

    Args:
        found: the likeliest after each token of the row's block.
        logits: ``(K, V)`` that they are of.
        draft: what stands in the block behind the newest token.
        alone: logits after a token of the block, read alone; ``None`` takes what the forward says.
        row: of the batch, for the constraint, which takes note of what is written.
        constraint: keeps answers inside their grammar, if there is one.
        end_ids: tokens that end an answer.
    """
    written: list[Choice] = []
    for place in range(len(draft) + 1):
        choice = found[place]
        if constraint is not None and not constraint.allows(row, choice.token):
            choice = _likeliest_of(logits[place], constraint.allowed(row))
        if alone is not None and choice.margin < ROUNDING:
            allowed = None if constraint is None else constraint.allowed(row)
            choice = _likeliest_of(alone(place), allowed)
        written.append(choice)
        if constraint is not None:
            constraint.write(row, choice.token)
        if choice.token in end_ids or place == len(draft) or choice.token != draft[place]:
            break
    return written


def _likeliest_of(logits: Tensor, allowed: Sequence[int] | None) -> Choice:
    """Of ``(V,)`` logits, among the tokens that are allowed."""
    if allowed is None:
        return likeliest(logits[None, None])[0][0]
    ids = torch.tensor(sorted(allowed), device=logits.device)  # of equals the first, as in argmax
    scores = logits[ids]
    best = int(scores.argmax())
    others = torch.cat([scores[:best], scores[best + 1 :]])
    margin = float(scores[best] - others.max()) if len(others) else torch.inf
    return Choice(int(ids[best]), float(scores[best] - logits.logsumexp(-1)), margin)


def _scored(tokenizer: Any, written: Sequence[Choice], end_ids: set[int]) -> GeneratedAnswer:
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
    pieces = [decoder.decode(token) for token in tokens]
    ends = list(accumulate(map(len, pieces)))
    if rest := decoder.decode(b"", final=True):
        pieces.append(rest)
        ends[-1] += len(rest)
    return "".join(pieces), ends


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
