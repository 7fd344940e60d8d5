"""Which loss term trains which part of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from qwendet.checks.runner import NotApplicableError, Table, Verdict
from qwendet.checks.subject import Subject
from qwendet.encoding.collate import to_device
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.model.losses import step_counts
from qwendet.model.spread import of_this_process
from qwendet.training.param_groups import parts

TEXT, BOX_TERMS = ("lm", "teacher", "student"), ("l1", "giou")
FROZEN, NO_PATH = "frozen", "no path"
OVERFLOW = "look for values that overflow; set model.dtype to bfloat16 or float32"
PATHS = "look for detach(), .item(), .data or no_grad between this part and the loss"


def gradients(subject: Subject) -> Verdict:
    """Each term's gradient reaches the parts that it is to train, and no trainable parameter is cut off."""
    detector, trainer = subject.bundle.detector, subject.trainer
    if isinstance(detector, FSDPModule):
        detector.reshard()  # gathered by a forward without a backward, its parameters are others
    owned = parts(detector)
    sample, has_teachers = _sample_of_all_terms(subject)
    batch = to_device(subject.collator([sample]), trainer.args.device)
    _, losses = trainer.losses(detector.train(), batch, step_counts([batch]).to(trainer.args.device))
    terms = dict(losses.terms)
    if not has_teachers:
        del terms["teacher"]
    trainable = {
        part: {name: p for name, p in parameters.items() if p.requires_grad}
        for part, parameters in owned.items()
    }
    matrix, connected = _matrix(terms, trainable)
    problems = [
        problem
        for term, row in matrix.items()
        for part, norm in row.items()
        for problem in _judge(term, part, norm)
    ]
    names = {name for own in trainable.values() for name in own}
    cut = sorted(names - connected)
    if cut and not problems:
        what = f"{len(cut)} trainable parameters get no gradient from any term, such as {cut[0]}"
        problems.append(Problem(what, cut[0], PATHS))
    rows = [
        (term, *(FROZEN if not trainable[part] else _cell(row[part]) for part in owned))
        for term, row in matrix.items()
    ]
    table = Table("Norm of the gradient, by term and part", ("term", *owned), rows)
    seen = (
        f"{len(matrix)} terms reach the parts that they train; {len(names)} trainable parameters have a path"
    )
    if not has_teachers:
        seen += "; teacher trains nothing: no demonstrations are configured"
    return Verdict(seen, tuple(problems), (table,))


def _sample_of_all_terms(subject: Subject) -> tuple[EncodedSample, bool]:
    """A sample with boxes, and whether it has demonstrations; without them only where none are configured."""
    pairs = list(zip(subject.samples, subject.encoded, strict=True))
    sample, encoded = max(pairs, key=lambda pair: (bool(pair[0].teachers), bool(pair[0].student.objects)))
    if not sample.teachers and subject.bundle.config.data.teacher_ratio > 0:
        raise NotApplicableError("no sample with demonstrations fits into data.max_tokens")
    return encoded, bool(sample.teachers)


def _cell(norm: float | None) -> str:
    return NO_PATH if norm is None else f"{norm:.3g}"


def _matrix(
    terms: Mapping[str, Tensor], trainable: Mapping[str, Mapping[str, nn.Parameter]]
) -> tuple[dict[str, dict[str, float | None]], set[str]]:
    """Gradient norms, and the names of all parameters that any term has a path to."""
    flat = [(part, name, p) for part, own in trainable.items() for name, p in own.items()]
    matrix: dict[str, dict[str, float | None]] = {}
    connected: set[str] = set()
    for term, value in terms.items():
        found: Sequence[Tensor | None] = [None] * len(flat)
        if value.requires_grad and flat:
            found = _gradients(value, [p for *_, p in flat])
        connected |= {name for (_, name, _), g in zip(flat, found, strict=True) if g is not None}
        matrix[term] = {
            part: _norm(g for (own, *_), g in zip(flat, found, strict=True) if own == part)
            for part in trainable
            if trainable[part]
        }
    return matrix, connected


def _gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """Of a value by each parameter; ``None`` where there is no path.

    What is spread over processes (FSDP) is in no graph: a backward pass gathers it and spreads its gradient.
    """
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    value.backward(retain_graph=True)
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def _norm(found: Iterable[Tensor | None]) -> float | None:
    """Of the gradients together; ``None`` if there is none."""
    gradients = [gradient for gradient in found if gradient is not None]
    if not gradients:
        return None
    total = torch.stack([of_this_process(gradient).double().square().sum() for gradient in gradients]).sum()
    if isinstance(gradients[0], DTensor):
        torch.distributed.all_reduce(total)
    return math.sqrt(total.item())


def _judge(term: str, part: str, norm: float | None) -> list[Problem]:
    """Text terms train all but the head; the head's terms train all, boxes of a new head at first only it."""
    where = f"{term} → {part}"
    if term in TEXT and part == "head":
        if norm is None:
            return []
        return [Problem(f"{term} has a gradient in the head, which no token sees", where, "see the detector")]
    if norm is None:
        return [Problem(f"{term} has no path to {part}: it is computed, but does not train it", where, PATHS)]
    if not math.isfinite(norm):
        return [Problem(f"the gradient of {term} in {part} is {norm}", where, OVERFLOW)]
    may_be_zero = term in BOX_TERMS and part != "head"  # regressors start at 0
    if norm == 0 and not may_be_zero:
        return [
            Problem(f"the gradient of {term} in {part} is 0: the term does not depend on it", where, PATHS)
        ]
    return []
