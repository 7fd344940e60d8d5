"""Runs that the checks compare: hidden states of each sample, and the head's predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwendet.checks.consistency.pair import exact_pair
from qwendet.checks.shortened import exact
from qwendet.checks.subject import Subject, once
from qwendet.encoding.collate import Batch, to_device
from qwendet.model.attention import attention_by_part
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadOutput


@dataclass(frozen=True)
class Run:
    """What a forward pass computed.

    Attributes:
        hidden: of each sample the states ``(tokens, text)`` of its own tokens, padding left out.
        head: predictions of the head, where there is one.
    """

    hidden: list[Tensor]
    head: HeadOutput | None


@once
def training(subject: Subject) -> Run:
    """One left-padded batch through the training build, exactly, in the mode that it trains in."""
    bundle = exact_pair(exact(subject)).trained
    return run(as_in_training(bundle.detector), bundle.collator()(subject.encoded))


@torch.no_grad()
def run(detector: Qwen25VLWithDetection, batch: Batch) -> Run:
    """Run the detector on a batch as it stands, in the mode it is in."""
    states: list[Tensor] = []
    language: Any = detector.vlm.model.language_model
    handle = language.register_forward_hook(lambda _, args, output: states.append(output.last_hidden_state))
    try:
        output = detector(to_device(batch, detector.device), with_tokens=False)
    finally:
        handle.remove()
    masks = batch["attention_mask"].bool().to(detector.device)
    return Run([row[own] for row, own in zip(states[0], masks, strict=True)], output.head)


@contextmanager
def attending(detector: Qwen25VLWithDetection, implementation: str) -> Iterator[None]:
    """Compute attention in another way until the block ends."""
    config = detector.config
    parts = {"": config, "text_config": config.text_config, "vision_config": config.vision_config}
    usual = {name: part._attn_implementation for name, part in parts.items()}
    detector.vlm.set_attn_implementation(attention_by_part(implementation))
    try:
        yield
    finally:
        detector.vlm.set_attn_implementation(usual)


def as_in_training(detector: Qwen25VLWithDetection) -> Qwen25VLWithDetection:
    """Set the mode that training computes in, but for the adapter's dropout, which is meant to be random."""
    detector.train()
    for name, module in detector.named_modules():
        if "lora_dropout" in name:
            module.eval()
    return detector
