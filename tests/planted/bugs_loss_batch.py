"""Bugs of encoder and collator: labels, spans, padding, targets, and the image that the head is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwendet.encoding import collate, encode, prompts
from qwendet.encoding.collate import IGNORED, Batch
from qwendet.encoding.resize import rescale_xyxy
from qwendet.errors import DataError
from tests.planted.bug import Bug
from tests.planted.in_code import Plant, in_batch, replacing


def without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_image(path: str, root: Path, where: str, declared: object) -> None:
        raise DataError(f"the image {path} is absent", where, "mount the folder again")

    monkeypatch.setattr(encode, "open_image", open_image)


def labels_without_pad_token(batch: Batch) -> dict[str, Any]:
    """Mask labels where the token is the pad token, where that is also the end of a turn."""
    end = int(batch["labels"][:, -1].max())  # the last label of every answer
    return {"labels": batch["labels"].masked_fill(batch["labels"] == end, IGNORED)}


def labels_of_the_prompt(batch: Batch) -> dict[str, Any]:
    return {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}


def right_padded(lengths: Sequence[int]) -> Any:
    return collate._Place((len(lengths), max(lengths)), [max(lengths) * row for row in range(len(lengths))])


def head_on_the_first_image(batch: Batch) -> dict[str, Any]:
    return {"patch_index": batch["patch_index"] - batch["patch_index"].amin((1, 2), keepdim=True)}


def patches_as_they_come(batch: Batch) -> dict[str, Any]:
    """Take the processor's block order for raster order."""
    index = batch["patch_index"].clone()
    for own, mask in zip(index, batch["patch_mask"], strict=True):
        own[mask] = own[mask].sort().values
    return {"patch_index": index}


def encoded(change: Callable[[encode.EncodedSample], dict[str, Any]]) -> Plant:
    """Change encoded samples."""
    sound = encode.Encoder.encode

    def spoilt(self: encode.Encoder, sample: Any, *, with_answer: bool, **given: Any) -> encode.EncodedSample:
        found = sound(self, sample, with_answer=with_answer, **given)
        return replace(found, **change(found))

    return replacing(encode.Encoder, "encode", spoilt)


def without_last_token_of_prompts(sample: encode.EncodedSample) -> dict[str, Any]:
    cut = () if sample.student_assistant_spans else ("input_ids", "mm_token_type_ids")
    return {name: getattr(sample, name)[:-1] for name in cut}


BATCH_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug("image gone since it was checked", "loss.build", ("is absent",), without_images),
    Bug(
        "teacher and student swapped in the collator",
        "test.loss.rows",
        ("teacher and student are mixed up",),
        in_batch(
            lambda batch: {"teacher_rows": batch["student_rows"], "student_rows": batch["teacher_rows"]}
        ),
    ),
    Bug(
        "labels shifted twice, by collator and model",
        "test.prompt.labels",
        ("a label is not its own token",),
        in_batch(lambda batch: {"labels": batch["labels"].roll(1, 1)}),
    ),
    Bug(
        "prompt trained on",
        "test.prompt.labels",
        ("is learned but is no answer",),
        in_batch(labels_of_the_prompt),
    ),
    Bug(
        "pad token is the end of turn, so its label is masked",
        "test.prompt.labels",
        ("<|im_end|>", "of an answer but not learned"),
        in_batch(labels_without_pad_token),
    ),
    Bug(
        "teachers' answers dropped",
        "test.prompt.labels",
        ("of an answer but not learned",),
        encoded(lambda sample: {"teacher_assistant_spans": ()}),
    ),
    Bug(
        "right padding",
        "test.loss.padding",
        ("padded on the right", "attention_mask"),
        replacing(collate, "_padded", right_padded),
    ),
    Bug(
        "attention mask of ones",
        "test.loss.padding",
        ("wrong: attention_mask",),
        in_batch(lambda batch: {"attention_mask": torch.ones_like(batch["attention_mask"])}),
    ),
    Bug(
        "mm_token_type_ids dropped",
        "test.loss.padding",
        ("wrong: mm_token_type_ids",),
        in_batch(lambda batch: {"mm_token_type_ids": torch.zeros_like(batch["mm_token_type_ids"])}),
    ),
    Bug(
        "positions of one dimension",
        "test.loss.padding",
        ("wrong: position_ids",),
        in_batch(lambda batch: {"position_ids": batch["position_ids"][:1].expand(3, -1, -1)}),
    ),
    Bug(
        "the prompt of inference lacks the last line break",
        "test.prompt.prefix",
        ("not what training saw",),
        encoded(without_last_token_of_prompts),
    ),
    Bug(
        "x and y swapped in answers",
        "test.images.answers",
        ("the answer is",),
        replacing(prompts, "rescale_xyxy", lambda *frames: rescale_xyxy(*frames)[:, [1, 0, 3, 2]]),
    ),
    Bug(
        "detection term computed on the teacher's image",
        "test.loss.image",
        ("patch_index", "of them are the student image's"),
        in_batch(head_on_the_first_image),
    ),
    Bug(
        "patches taken in block order",
        "test.loss.image",
        ("in another order",),
        in_batch(patches_as_they_come),
    ),
    Bug(
        "targets written as corners",
        "test.loss.detection",
        ("l1 is", "other targets"),
        replacing(encode, "xyxy_to_cxcywh", lambda boxes: boxes),
    ),
    Bug(
        "target labels all of the first class",
        "test.loss.detection",
        ("class is", "other targets"),
        encoded(lambda sample: {"label_ids": torch.zeros_like(sample.label_ids)}),
    ),
]
