"""Runs that are compared, and how far apart equal ones may come out: measured, never guessed.

    the same batch twice                repeated: must not exceed rounding, or nothing else can be compared
    the same batch, float32 ↔ float64   rounding
    tolerance = MULTIPLE × rounding

Checks compute in float64, a small model whole and a large one's first layers, where equal means nearly
bitwise equal; the tolerance is still that of float32, because transformers normalises in float32 whatever the
type. A tolerance that a wrong computation could stay within compares nothing: the check is skipped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwendet.checks.consistency.pair import exact_pair
from qwendet.checks.runner import NotApplicableError, Verdict
from qwendet.checks.shortened import exact
from qwendet.checks.subject import Subject, as_in_training, once
from qwendet.encoding.collate import Batch, to_device
from qwendet.errors import Problem
from qwendet.model.attention import attention_by_part
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import HeadOutput

MULTIPLE = 8.0
MOST_ROUNDING = 1e-3
"""Share of the largest value beyond which float32 itself is no longer to be trusted."""
MOST_TOLERANCE = 0.05
"""Share of the largest value beyond which a tolerance would let a wrong computation pass."""

Figures = dict[str, float]


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


@dataclass(frozen=True)
class Noise:
    """Largest differences between equal computations, each as a share of its quantity's largest value.

    Attributes:
        repeated: the same computation run twice, by quantity: ``hidden``, ``logits``, ``boxes``.
        rounding: float32 against float64.
    """

    repeated: Figures
    rounding: Figures

    def tolerance(self, quantity: str, expected: Tensor) -> float:
        """Largest difference from ``expected`` that is taken for rounding."""
        return MULTIPLE * self.rounding[quantity] * max(largest(expected), 1e-6)


@once
def noise(subject: Subject) -> Noise:
    """Measure it on the subject's model; the subject is small."""
    bundle = exact_pair(subject).trained
    batch = bundle.collator()(subject.encoded)
    expected = _quantities(training(subject))
    rounded = _quantities(run(copy.deepcopy(bundle.detector).float(), batch))
    again = _quantities(run(bundle.detector, batch))
    return Noise(_shares(again, expected), _shares(rounded, expected))


def _quantities(found: Run) -> dict[str, Tensor]:
    quantities = {"hidden": torch.cat(found.hidden)}
    if found.head is not None:
        dense = slice(found.head.stage_sizes[0])  # later stages choose, and a choice may flip
        own = found.head.valid[:, dense]
        quantities["logits"] = found.head.logits[:, dense][own]
        quantities["boxes"] = found.head.boxes_cxcywh[:, dense][own]
    return quantities


def _shares(found: dict[str, Tensor], expected: dict[str, Tensor]) -> Figures:
    return {
        name: difference(found[name], tensor) / max(largest(tensor), 1e-6)
        for name, tensor in expected.items()
    }


def largest(values: Tensor) -> float:
    """Largest magnitude; 0 of nothing."""
    return values.abs().max().item() if values.numel() else 0.0


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference; infinite where one is not finite, or the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    gap = largest(found.double() - expected.double())
    return gap if math.isfinite(gap) else math.inf


def compare(
    found: Tensor, expected: Tensor, tolerance: float, what: str, where: str, fix: str
) -> list[Problem]:
    """A problem that names the largest difference and its place, if it is beyond the tolerance.

    A tolerance above :data:`MOST_TOLERANCE` of the largest value compares nothing: the check is skipped.
    """
    if found.shape != expected.shape:
        return [Problem(f"{what} differ in shape: {tuple(found.shape)}, {tuple(expected.shape)}", where, fix)]
    share = tolerance / max(largest(expected), 1e-6)
    if share > MOST_TOLERANCE:
        reason = f"rounding alone may move them by {share:.0%} of the largest value"
        raise NotApplicableError(f"{what} cannot be compared: {reason}")
    gap = difference(found, expected)
    if gap <= tolerance:
        return []
    distances = (found.double() - expected.double()).abs().nan_to_num(nan=math.inf)
    place = [int(i) for i in torch.unravel_index(distances.argmax(), distances.shape)]
    return [Problem(f"{what} differ by {gap:.3g}, tolerance {tolerance:.3g}", f"{where}, at {place}", fix)]


def noise_is_small(subject: Subject) -> Verdict:
    """The same computation twice gives the same, and float32 is near float64: else nothing compares."""
    few = exact(subject)
    measured, device = noise(few), few.bundle.detector.device.type
    measured_on = "this model" if subject.is_small else f"the first layers of this model, on the {device}"
    problems = [
        Problem(
            f"{name} of the same batch computed twice differ by {share:.1e} of the largest value;"
            f" rounding makes {measured.rounding[name]:.1e}",
            measured_on,
            "something in the forward is random, such as dropout: set it to 0",
        )
        for name, share in measured.repeated.items()
        if not share <= measured.rounding[name]
    ]
    problems += [
        Problem(
            f"{name} in float32 are {share:.1e} of the largest value away from float64",
            measured_on,
            "look for values that overflow or for operations in a narrower type",
        )
        for name, share in measured.rounding.items()
        if not share <= MOST_ROUNDING
    ]
    rounding, repeated = max(measured.rounding.values()), max(measured.repeated.values())
    seen = (
        f"rounding {rounding:.1e}, the same twice {repeated:.1e} of the largest value"
        f" ({measured_on}); differences up to {MULTIPLE:g} × rounding are taken for equal"
    )
    return Verdict(seen, tuple(problems))
