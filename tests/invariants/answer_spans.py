r"""Where the answers are in a sequence of tokens, read off the text: the encoder is not asked.

start of turn, assistant \n [answer … end of turn]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwendet.checks.subject import Subject, once
from qwendet.families.chat import ASSISTANT, END_OF_TURN, START_OF_TURN

HEADER = ASSISTANT.removeprefix(START_OF_TURN)
Spans = list[tuple[int, int]]


@once
def answers_of(subject: Subject) -> list[tuple[list[int], Spans]]:
    """Tokens of each sample and where its answers are; the last is the student's."""
    tokenizer, prefix = subject.bundle.processor.tokenizer, subject.bundle.detector.family.answer_prefix
    return [
        (ids, answer_spans(ids, tokenizer, prefix))
        for ids in (sample.input_ids.tolist() for sample in subject.encoded)
    ]


def answer_spans(input_ids: Sequence[int], tokenizer: Any, answer_prefix: str) -> Spans:
    """Half-open ranges of the assistant's answers, each with its end of turn."""
    prefix = tokenizer(answer_prefix, add_special_tokens=False)["input_ids"]
    begins, ends = tokenizer.convert_tokens_to_ids([START_OF_TURN, END_OF_TURN])
    spans = []
    for at, token in enumerate(input_ids):
        if token != begins or (start := _behind_header(input_ids, at + 1, tokenizer)) is None:
            continue
        if input_ids[start : start + len(prefix)] == prefix:
            start += len(prefix)
        if ends in input_ids[start:]:
            spans.append((start, input_ids.index(ends, start) + 1))
    return spans


def _behind_header(input_ids: Sequence[int], at: int, tokenizer: Any) -> int | None:
    """Index behind ``assistant`` and the line break, if that is what stands at ``at``."""
    for end in range(at + 1, at + len(HEADER.encode()) + 1):
        text = tokenizer.decode(list(input_ids[at:end]))
        if text == HEADER:
            return end
        if not HEADER.startswith(text):
            return None
    return None
