"""Greedy text answers, token for token the model's likeliest, several tokens a forward where a draft holds.

prompts ─► read ─► likeliest ─► verify ─► written ──► ended? ─► scored answer
▲                              │
└── block: newest token, draft ◄

read: cached_forward     likeliest, verify: verification     draft: drafts
what may be written: constrained_decoding                    scored answer: token_scores
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qwendet.encoding.collate import Batch
from qwendet.inference.cached_forward import AnswersInProgress
from qwendet.inference.constrained_decoding import AnswerConstraint
from qwendet.inference.drafts import Drafter
from qwendet.inference.token_scores import GeneratedAnswer, scored_answer
from qwendet.inference.verification import Choice, Likeliest, verified
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadOutput
from qwendet.model.product import product


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
        drafters: Sequence[Drafter] | None = None
        if drafting is None:
            logits = progress.read_prompts()
        else:
            logits, head = progress.read_prompts_with_head()
            drafters = drafting(head)
        is_drafted = drafters is not None and progress.can_cut_back
        # In half precision too many are closer than rounding to read each of them again.
        alone = progress.alone if is_drafted and detector.dtype.itemsize >= 4 else None
        while True:
            decide = alone if logits.shape[:2].numel() > 1 else None
            found, counts, stay = Likeliest.of(logits, with_margins=decide is not None), [], []
            for index, row in enumerate(progress.rows):
                choices = verified(found, index, drafts[row], decide, row, constraint, end_ids)
                written[row] += choices
                counts.append(len(choices))
                left = max_new_tokens - len(written[row])
                if choices[-1].token not in end_ids and left:
                    stay.append(index)
                if drafters is not None:
                    drafters[row].write([choice.token for choice in choices])
                    drafts[row] = drafters[row].draft()[: left - 1] if is_drafted else []
            progress.keep(counts)
            progress.leave(stay)
            if not progress.rows:
                break
            logits = progress.read([[written[row][-1].token, *drafts[row]] for row in progress.rows])
    return [scored_answer(tokenizer, row, end_ids) for row in written]


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
