"""How far apart equal computations may come out: measured, never guessed.

    the same batch twice                repeated: must not exceed rounding, or nothing else can be compared
    the same batch, float32 ↔ float64   rounding
    tolerance = MULTIPLE × rounding

Checks of a small model compute in float64, where equal means nearly bitwise equal; the tolerance is still
that of float32, because transformers normalises in float32 whatever the type. A large model is not run again:
the embedded tiny model is, in the large one's type, and its error is scaled with the number of layers.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qwendet.checks.consistency.pair import exact_pair
from qwendet.checks.consistency.runs import training
from qwendet.checks.consistency.synthetic import synthetic_sample
from qwendet.checks.once import once
from qwendet.checks.result import Verdict
from qwendet.checks.subject import Subject
from qwendet.checks.trace import Trace, run
from qwendet.config import Config, DataConfig, ModelConfig
from qwendet.data.collate import Batch
from qwendet.errors import Problem
from qwendet.loader import load
from qwendet.model.checkpoint import dtype_name
from qwendet.model.detector import Qwen25VLWithDetection

MULTIPLE = 8.0
MOST_ROUNDING = 1e-3
"""Share of the largest value beyond which float32 itself is no longer to be trusted."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Noise:
    """Largest differences between equal computations, each as a share of its quantity's largest value.

    Attributes:
        repeated: the same computation run twice, by quantity: ``hidden``, ``logits``, ``boxes``.
        rounding: float32, or the large model's type, against float64.
        measured_on: what was run, for the report.
    """

    repeated: Figures
    rounding: Figures
    measured_on: str

    def tolerance(self, quantity: str, expected: Tensor) -> float:
        """Largest difference from ``expected`` that is taken for rounding."""
        return MULTIPLE * self.rounding[quantity] * max(largest(expected), 1e-6)


@once
def noise(subject: Subject) -> Noise:
    """Measure it on the subject's model, or on the embedded one in the type of a large model."""
    if subject.is_small:
        detector = exact_pair(subject).trained.detector
        batch = exact_pair(subject).trained.collator()(subject.encoded)
        return _measure(detector, batch, training(subject), torch.float32, "this model")
    return _noise_of_large(subject)


def _noise_of_large(subject: Subject) -> Noise:
    labels = ("circle", "square")
    config = Config(model=ModelConfig(dtype="float32", device="cpu"), data=DataConfig(labels=labels))
    bundle = load(config, for_inference=False)
    encoder = bundle.encoder()
    batch = bundle.collator()([encoder.encode(synthetic_sample(subject.folder, labels), with_answer=True)])
    exact = bundle.detector.double()
    dtype = subject.bundle.detector.dtype
    found = _measure(exact, batch, run(exact, batch), dtype, f"the tiny model in {dtype_name(dtype)}")
    layers = subject.bundle.detector.config.text_config.num_hidden_layers
    growth = layers / bundle.detector.config.text_config.num_hidden_layers
    rounding = {name: share * growth for name, share in found.rounding.items()}
    return Noise(found.repeated, rounding, f"{found.measured_on}, times {growth:g} for {layers} layers")


def _measure(
    exact: Qwen25VLWithDetection, batch: Batch, once: Trace, dtype: torch.dtype, measured_on: str
) -> Noise:
    reference = _quantities(once, batch)
    rounded = _quantities(run(copy.deepcopy(exact).to(dtype), batch), batch)
    again = _quantities(run(exact, batch), batch)
    return Noise(_shares(again, reference), _shares(rounded, reference), measured_on)


def _quantities(trace: Trace, batch: Batch) -> dict[str, Tensor]:
    found = {"hidden": trace.readings[0].hidden[batch["attention_mask"].bool()]}
    if trace.looks:
        output = trace.looks[0].output
        dense = slice(output.stage_sizes[0])  # later stages choose, and a choice may flip
        own = output.valid[:, dense]
        found |= {"logits": output.logits[:, dense][own], "boxes": output.boxes_cxcywh[:, dense][own]}
    return found


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

    Args:
        found: one computation.
        expected: the other.
        tolerance: the largest difference that is taken for rounding.
        what: which two are compared, such as ``"hidden states alone and left-padded"``.
        where: sample, layer or parameter; the index of the largest difference is added.
        fix: what to look at.
    """
    if found.shape != expected.shape:
        return [Problem(f"{what} differ in shape: {tuple(found.shape)}, {tuple(expected.shape)}", where, fix)]
    gap = difference(found, expected)
    if gap <= tolerance:
        return []
    distances = (found.double() - expected.double()).abs().nan_to_num(nan=math.inf)
    place = [int(i) for i in torch.unravel_index(distances.argmax(), distances.shape)]
    return [Problem(f"{what} differ by {gap:.3g}, tolerance {tolerance:.3g}", f"{where}, at {place}", fix)]


def noise_is_small(subject: Subject) -> Verdict:
    """The same computation twice gives the same, and float32 is near float64: else nothing compares."""
    measured = noise(subject)
    problems = [
        Problem(
            f"{name} of the same batch computed twice differ by {share:.1e} of the largest value;"
            f" rounding makes {measured.rounding[name]:.1e}",
            measured.measured_on,
            "something in the forward is random, such as dropout: set it to 0",
        )
        for name, share in measured.repeated.items()
        if not share <= measured.rounding[name]
    ]
    problems += [
        Problem(
            f"{name} in float32 are {share:.1e} of the largest value away from float64",
            measured.measured_on,
            "look for values that overflow or for operations in a narrower type",
        )
        for name, share in measured.rounding.items()
        if is_single(subject) and not share <= MOST_ROUNDING
    ]
    rounding, repeated = max(measured.rounding.values()), max(measured.repeated.values())
    seen = (
        f"rounding {rounding:.1e}, the same twice {repeated:.1e} of the largest value"
        f" ({measured.measured_on}); differences up to {MULTIPLE:g} × rounding are taken for equal"
    )
    return Verdict(seen, tuple(problems))


def is_single(subject: Subject) -> bool:
    """Whether the noise is that of float32."""
    return subject.is_small or subject.bundle.detector.dtype == torch.float32
