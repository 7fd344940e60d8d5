"""Text answers are, token for token, what training finds likeliest, a token at a time and by drafts.

prompts ─┬─ a token at a time ─► tokens ─► behind the prompts, through the training build ─► the likeliest?
└─ by drafts, some of them wrong ─► the same tokens, the same log-probabilities?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor

from qwendet.checks.consistency.noise import compare, noise, run
from qwendet.checks.consistency.pair import exact_pair
from qwendet.checks.subject import Subject, as_in_training
from qwendet.encoding.collate import to_device
from qwendet.errors import Problem
from qwendet.inference.generation import generate_answers
from qwendet.inference.predictor import Predictor
from tests.invariants.runs import GENERATED, token_logits, with_answer

FIX = "generation must see the prompt, mask and positions of training; take the versions in constraints.txt"


@dataclass
class Foreseen:
    """Drafts an answer that is known, the last token of each draft wrong; notes what is written.

    Attributes:
        right: how many tokens of a draft are right.
    """

    answer: Sequence[int] = ()
    right: int = 0
    written: list[int] = field(default_factory=list)

    def write(self, tokens: Sequence[int]) -> None:
        """Take note of them."""
        self.written += tokens

    def draft(self) -> list[int]:
        """Some right ones and a wrong one."""
        at = len(self.written)
        ahead = [*self.answer[at : at + self.right + 1]]
        return [*ahead[:-1], *(token - 1 if token else 1 for token in ahead[-1:])]


def drafts(subject: Subject) -> list[Problem]:
    """Greedy generation with the cache, a token at a time and by drafts, is the teacher-forced likeliest."""
    served = exact_pair(subject).served
    encoder, tokenizer = Predictor(served).encoder, served.processor.tokenizer
    items = [encoder.encode(sample, with_answer=False) for sample in subject.samples]
    batch = to_device(served.collator()(items), served.detector.device)
    plain = [Foreseen() for _ in items]
    generate = partial(generate_answers, served.detector, tokenizer, batch, GENERATED)
    answers = [generate(drafting=lambda _: plain)]
    drafted = [Foreseen(own.written, 1 + row % 3) for row, own in enumerate(plain)]
    answers += [generate(drafting=lambda _: drafted)]
    problems: list[Problem] = []
    trained = exact_pair(subject).trained
    prompts = [item.input_ids.tolist() for item in items]
    whole = [
        with_answer(item, prompt, own.written)
        for item, prompt, own in zip(items, prompts, plain, strict=True)
    ]
    hidden = run(as_in_training(trained.detector), trained.collator()(whole)).hidden
    expected = [
        token_logits(trained, states[-len(own.written) - 1 : -1])
        for states, own in zip(hidden, plain, strict=True)
    ]
    for row, (logits, *both) in enumerate(zip(expected, *answers, strict=True)):
        where, tolerance = subject.samples[row].where, noise(subject).tolerance("hidden", logits)
        tokens = plain[row].written
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(tokens, device=logits.device)[:, None])
        problems += not_likeliest(logits, tokens, tolerance, where)
        problems += _same(tokens, drafted[row].written, where)
        for name, answer in zip(("a token at a time", "with drafts"), both, strict=True):
            found = torch.tensor(answer.log_probs, dtype=wanted.dtype, device=wanted.device)[:, None]
            what = f"log-probabilities (token) of generation {name} and of training"
            problems += compare(found, wanted[: len(found)], tolerance, what, where, FIX)
    return problems


def not_likeliest(logits: Tensor, answer: Sequence[int], tolerance: float, where: str) -> Iterator[Problem]:
    """The first token of an answer that ``(tokens, vocabulary)`` logits find less likely than another."""
    best = logits.max(-1)
    chosen = logits.gather(1, torch.tensor(answer, device=logits.device)[:, None])[:, 0]
    behind = (best.values - chosen > tolerance).nonzero().flatten().tolist()
    if behind:
        at = behind[0]
        wanted = int(best.indices[at])
        what = f"step {at}: generation chose token {answer[at]}, training finds {wanted} likeliest"
        yield Problem(what, where, FIX)


def _same(plain: Sequence[int], drafted: Sequence[int], where: str) -> Iterator[Problem]:
    """Drafts change nothing: what holds of them is written, and nothing else."""
    if drafted != plain:
        pairs = zip_longest(plain, drafted)
        at = next(at for at, (own, other) in enumerate(pairs) if own != other)
        what = f"generation with drafts writes other tokens than a token at a time, from token {at} on"
        yield Problem(what, where, "infer.draft: off writes a token at a time")
