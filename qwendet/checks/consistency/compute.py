"""``consistency.compute.*``: the inference build and every attention compute what training computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from qwendet.checks.consistency.noise import (
    MULTIPLE,
    Run,
    attending,
    compare,
    difference,
    noise,
    run,
    training,
)
from qwendet.checks.consistency.pair import exact_pair, pair
from qwendet.checks.runner import NotApplicableError, Verdict
from qwendet.checks.shortened import exact
from qwendet.checks.subject import Subject
from qwendet.errors import Problem
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle


def served(subject: Subject) -> Verdict:
    """The prompt computes in the inference build what training computed of it."""
    problems = [] if subject.is_small else [*_not_finite(_prompted(subject, pair(subject).served))]
    few = exact(subject)
    found, expected = _prompted(few, exact_pair(few).served), training(few)
    for own, row, sample in zip(found.hidden, expected.hidden, few.samples, strict=True):
        wanted = row[: len(own)]
        what = "the prompt's hidden states (token, channel) at inference and in training"
        fix = "both must build the same model and read the same prompt"
        problems += compare(own, wanted, noise(few).tolerance("hidden", wanted), what, sample.where, fix)
    seen = f"{len(expected.hidden)} prompts compute the same in training and inference"
    return Verdict(seen, tuple(problems))


def _prompted(subject: Subject, served: Bundle) -> Run:
    """The prompts of the samples, as inference asks them, through its build."""
    encoder = Predictor(served).encoder
    prompts = [encoder.encode(sample, with_answer=False) for sample in subject.samples]
    return run(served.detector, served.collator()(prompts))


def _not_finite(found: Run) -> Iterator[Problem]:
    """The whole model, in the type that it is served in, overflows nowhere."""
    tensors = {"hidden states": found.hidden}
    if found.head is not None:
        tensors |= {"class logits": [found.head.logits], "boxes": [found.head.boxes_cxcywh]}
    for what, values in tensors.items():
        if not all(value.isfinite().all() for value in values):
            fix = "model.dtype: bfloat16 or float32; float16 ends at 65,504"
            yield Problem(f"{what} of the inference build are not finite", "Predictor", fix)


def attention(subject: Subject) -> Verdict:
    """Attention computed in the plain way gives what the configured implementation gives."""
    usual = subject.bundle.config.model.attn_implementation
    subject = exact(subject)
    runs = _by_attention(subject, usual)
    rounding = _rounding(subject, runs)
    expected, problems = runs.pop(usual), []
    for name, rows in runs.items():
        for found, row, sample in zip(rows, expected, subject.samples, strict=True):
            tolerance = max(noise(subject).tolerance("hidden", row), rounding)
            what = f"hidden states (token, channel) under {name} and {usual}"
            fix = "set model.attn_implementation to sdpa, in training and inference"
            problems += compare(found, row, tolerance, what, sample.where, fix)
    return Verdict(f"{' and '.join([usual, *runs])} agree", tuple(problems))


def _rounding(subject: Subject, runs: dict[str, list[Tensor]]) -> float:
    """Tolerance of a type that is narrower than float32: how far sdpa is from float64 in it."""
    if "flash_attention_2" not in runs:
        return 0.0
    return MULTIPLE * max(
        difference(*rows) for rows in zip(runs["sdpa"], training(subject).hidden, strict=True)
    )


def _by_attention(subject: Subject, usual: str) -> dict[str, list[Tensor]]:
    """Hidden states of the training batch under each implementation that runs here."""
    bundle, dtype = exact_pair(subject).trained, torch.float32
    if usual == "flash_attention_2":
        if bundle.detector.device.type != "cuda":
            raise NotApplicableError(f"{usual} needs a GPU with room for a few layers in float64")
        is_narrow = subject.config.model.dtype == "float16"
        dtype = torch.float16 if is_narrow else torch.bfloat16
    detector = copy.deepcopy(bundle.detector).to(dtype)
    batch, runs = bundle.collator()(subject.encoded), {}
    for name in dict.fromkeys((usual, "sdpa", "eager")):
        with attending(detector, name):
            runs[name] = run(detector, batch).hidden
    return runs
