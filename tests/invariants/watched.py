"""What the ``loss.*`` checks look at: the trainer's step on the first samples, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qwendet.checks.runner import NotApplicableError
from qwendet.checks.subject import Subject, once
from qwendet.encoding.collate import Batch
from qwendet.encoding.encode import EncodedSample
from qwendet.model.detector import DetectorOutput, Qwen25VLWithDetection
from qwendet.training.trainer import DetectionTrainer
from tests.invariants.answer_spans import Spans, answers_of
from tests.invariants.step import Shallow, Share, leaves, row_of, watch_step


@dataclass(frozen=True)
class FirstStep:
    """The samples as one micro-batch of one step of the trainer.

    Attributes:
        share: what went into the loss.
        hidden: ``(B, L, text)`` states that the share's graph begins at.
    """

    share: Share
    hidden: Tensor


@once
def first_step(subject: Subject) -> FirstStep:
    """Let the trainer take its step on the subject's samples, up to the backward pass."""
    model = Shallow(subject.bundle.detector)
    (share,) = watch_step(subject.trainer, [subject.collator(subject.encoded)], model)
    assert model.hidden is not None
    return FirstStep(share, model.hidden)


class Watched:
    """A subject and one step of its trainer; every part is made at most once.

    Args:
        subject: the config's model and samples.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @property
    def trainer(self) -> DetectionTrainer:
        """The trainer that ``train`` would use."""
        return self.subject.trainer

    @property
    def detector(self) -> Qwen25VLWithDetection:
        """The training build."""
        return self.subject.bundle.detector

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.subject.bundle.processor.tokenizer

    @cached_property
    def ids(self) -> list[list[int]]:
        """Tokens of each sample, without padding."""
        return [sample.input_ids.tolist() for sample in self.subject.encoded]

    @cached_property
    def spans(self) -> list[Spans]:
        """The answers of each sample, found in its tokens; the last is the student's."""
        return [spans for _, spans in answers_of(self.subject)]

    @cached_property
    def is_student(self) -> npt.NDArray[np.bool_]:
        """Of every answer token of all samples in order: whether it is the student's."""
        return np.array([is_last for own in self.spans for is_last in _is_last(own)], dtype=np.bool_)

    def collate(self, encoded: Sequence[EncodedSample]) -> Batch:
        """A batch, by the trainer's own collator."""
        batch: Batch = self.subject.collator(encoded)
        return batch

    @cached_property
    def batch(self) -> Batch:
        """All samples in one batch."""
        return self.collate(self.subject.encoded)

    @property
    def is_packed(self) -> bool:
        """Whether the batch is one row of all samples."""
        return self.subject.bundle.config.train.packing

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Of each sample its row of the batch and where it must begin in it: at the right end, or packed."""
        lengths = [len(ids) for ids in self.ids]
        if self.is_packed:
            return [(0, first) for first in accumulate([0, *lengths[:-1]])]
        width = self.batch["input_ids"].shape[1]
        return [(row, width - own) for row, own in enumerate(lengths)]

    def filled_by(self, name: str, sample: int) -> list[Any]:
        """Of a part of the batch ``(B, L)`` what a sample fills: its row with its padding, or its stretch."""
        row, first = self.places[sample]
        stretch = slice(first, first + len(self.ids[sample])) if self.is_packed else slice(None)
        found: list[Any] = self.batch[name][row, stretch].tolist()
        return found

    def padding_of(self, sample: int) -> int:
        """Tokens of padding before a sample."""
        return 0 if self.is_packed else self.places[sample][1]

    @cached_property
    def share_and_hidden(self) -> tuple[Share, Tensor]:
        """The samples as one micro-batch of one step, and the hidden states that its graph begins at."""
        step = first_step(self.subject)
        return step.share, step.hidden

    @property
    def share(self) -> Share:
        """The samples as one micro-batch of one step."""
        return self.share_and_hidden[0]

    def rows(self, which: Sequence[int]) -> list[DetectorOutput]:
        """The outputs of single samples in float64, from those of the whole batch."""
        lengths = [sum(end - start for start, end in own) for own in self.spans]
        ends = np.cumsum(lengths).tolist()
        tokens = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        return [row_of(self.share.output, row, tokens[row], self.batch["asked"][row]) for row in which]

    def outputs(self, dtype: torch.dtype) -> DetectorOutput:
        """The outputs of the whole batch, as leaves of a new graph."""
        return leaves(self.share.output, dtype)

    def row_of_kind(self, *, negative: bool = False, bare: bool = False, lesson: bool = False) -> int:
        """The first sample without boxes, without demonstrations, or with them, and best with boxes, too.

        Raises:
            NotApplicableError: if there is none, and no room in ``data.max_tokens`` to make one.
        """
        rows = list(enumerate(self.subject.samples))
        for needs_boxes in (True, False) if lesson else (False,):
            for row, sample in rows:
                has_boxes, has_teachers = bool(sample.student.objects), bool(sample.teachers)
                if needs_boxes and not has_boxes:
                    continue
                if (negative and not has_boxes) or (bare and not has_teachers) or (lesson and has_teachers):
                    return row
        kind = "without boxes" if negative else "without demonstrations" if bare else "with demonstrations"
        raise NotApplicableError(f"no sample {kind} fits into data.max_tokens")


def _is_last(spans: Spans) -> list[bool]:
    return [span == spans[-1] for span in spans for _ in range(span[0], span[1])]
