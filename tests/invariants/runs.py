"""The few runs of the model that the checks share.

training   the first samples with answers in one left-padded batch, as training computes them
serving    the same samples asked through the Predictor: by head, and by greedy text
forced     the prompts with the generated tokens as answers, as training would compute those
alone      samples of that batch each by itself: no padding, nobody beside them

"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from qwendet.checks.consistency.pair import exact_pair
from qwendet.checks.subject import Subject, as_in_training, once
from qwendet.data.samples import Sample
from qwendet.encoding.encode import EncodedSample
from qwendet.inference.detections import Prediction
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle
from tests.invariants.trace import Trace, recording, run

GENERATED = 12
"""Most tokens that are generated for a check."""
END_AT = 3
"""Token of an answer that is made its last, where no answer ends by itself."""


@dataclass(frozen=True)
class Serving:
    """What asking the Predictor showed.

    Attributes:
        samples: what was asked.
        trace: every call.
        predictions: its answers.
        steps: per answer the logits ``(steps, vocabulary)`` of its tokens.
        rows: per step the samples that had a part in it: those whose answers had not ended.
    """

    samples: list[Sample]
    trace: Trace
    predictions: list[Prediction]
    steps: list[Tensor]
    rows: list[list[int]]

    @cached_property
    def generated(self) -> list[list[int]]:
        """Likeliest tokens of each answer, the end of turn included if it was reached."""
        return [logits.argmax(-1).tolist() for logits in self.steps]

    @property
    def prefill(self) -> int:
        """Which call of the language model read the prompts for generation."""
        return len(self.trace.batches)


@once
def training(subject: Subject) -> Trace:
    """One batch through the training build, in the mode it trains in."""
    bundle = exact_pair(subject).trained
    return run(as_in_training(bundle.detector), bundle.collator()(subject.encoded))


@once
def packed_pass(subject: Subject) -> Trace:
    """The samples packed into one row by the trainer's own collator."""
    return run(as_in_training(exact_pair(subject).trained.detector), subject.collator(subject.encoded))


@once
def alone(subject: Subject) -> list[Trace]:
    """Each sample by itself."""
    bundle = exact_pair(subject).trained
    collator = bundle.collator()
    return [run(as_in_training(bundle.detector), collator([item])) for item in subject.encoded]


@once
def serving(subject: Subject) -> Serving:
    """The samples without their answers, asked through the Predictor."""
    has_head = exact_pair(subject).served.detector.head is not None
    return _asked(subject, "both" if has_head else "text")


@once
def ended(subject: Subject) -> Serving:
    """The same asked by text, the model made to end the first answer at its third token."""
    vlm, steps = exact_pair(subject).served.detector.vlm, itertools.count(1)
    end = exact_pair(subject).served.processor.tokenizer.eos_token_id

    def end_first(module: Any, args: Any, output: Any) -> None:
        if next(steps) == END_AT:
            output.logits[0, -1, end] = output.logits[0, -1].max() + 1

    handle = vlm.register_forward_hook(end_first)
    try:
        return _asked(subject, "text")
    finally:
        handle.remove()


def _asked(subject: Subject, mode: str) -> Serving:
    served = exact_pair(subject).served
    samples = subject.samples
    infer = served.config.infer.model_copy(
        update={
            "batch_size": len(samples),
            "max_new_tokens": GENERATED,
            "score_threshold": 0.0,
            "draft": "off",  # a token at a time, so that each step is seen
            "constrained": False,  # what is compared is what the model itself would say
        }
    )
    bundle = replace(served, config=served.config.model_copy(update={"infer": infer}))
    with recording(bundle.detector) as trace:
        predictions = list(Predictor(bundle).predict(samples, mode))
    _put_back_mask(trace.prompts[0], bundle.processor.tokenizer.pad_token_id)
    rows = _rows_of_steps(trace.logits, end_ids(bundle))
    steps = [
        torch.stack(
            [logits[own.index(row)] for own, logits in zip(rows, trace.logits, strict=False) if row in own]
        )
        for row in rows[0]
    ]
    return Serving(samples, trace, predictions, steps, rows)


def end_ids(bundle: Bundle) -> set[int]:
    """Tokens that end an answer."""
    tokenizer = bundle.processor.tokenizer
    return {tokenizer.eos_token_id, tokenizer.pad_token_id}


def _rows_of_steps(logits: Sequence[Tensor], ends: set[int]) -> list[list[int]]:
    """Samples behind the rows of each step's logits; answers leave with their ends.

    It stops at a step of more or fewer rows than there are answers left: whose they are cannot be told.
    """
    rows = [list(range(len(logits[0])))]
    for step, following in itertools.pairwise(logits):
        likeliest = zip(rows[-1], step.argmax(-1).tolist(), strict=True)
        left = [row for row, token in likeliest if token not in ends]
        if len(left) != len(following):
            break
        rows.append(left)
    return rows


def _put_back_mask(given: dict[str, Any], pad: int) -> None:
    """Put back the mask that generation leaves out where all prompts are of one length: nothing is padded."""
    if given.get("attention_mask") is None and not (given["input_ids"] == pad).any():
        given["attention_mask"] = torch.ones_like(given["input_ids"])


@once
def forced(subject: Subject) -> Trace:
    """The generated tokens as if they were the answers to be learned, in one batch."""
    bundle, shown = exact_pair(subject).trained, serving(subject)
    triples = zip(subject.encoded, prompts_of(shown), shown.generated, strict=True)
    items = [with_answer(*triple) for triple in triples]
    return run(as_in_training(bundle.detector), bundle.collator()(items))


def prompts_of(shown: Serving) -> list[list[int]]:
    """Tokens of each prompt that generation was given, without padding."""
    given: dict[str, Any] = shown.trace.prompts[0]
    return [
        row[mask.bool()].tolist()
        for row, mask in zip(given["input_ids"], given["attention_mask"], strict=True)
    ]


def with_answer(item: EncodedSample, prompt: Sequence[int], answer: Sequence[int]) -> EncodedSample:
    """The encoded sample with other tokens, its student's answer the last of them."""
    image_token = item.input_ids[item.student_image_start]
    input_ids = torch.tensor([*prompt, *answer], dtype=torch.int64)
    return replace(
        item,
        input_ids=input_ids,
        mm_token_type_ids=(input_ids == image_token).long(),
        student_assistant_spans=((len(prompt), len(input_ids)),),
    )


def token_logits(bundle: Bundle, hidden: Tensor) -> Tensor:
    """What the language model's output says of the next token."""
    with bundle.detector.computing():
        logits: Tensor = bundle.detector.vlm.lm_head(hidden)
    return logits


def hidden_of(trace: Trace, call: int = 0) -> list[Tensor]:
    """Hidden states of each sample's own tokens, padding left out: per sample ``(tokens, text)``."""
    given = trace.batches[0] if call < len(trace.batches) else trace.prompts[0]
    mask = given["attention_mask"].bool()
    return [row[own] for row, own in zip(trace.readings[call].hidden, mask, strict=True)]
