"""Which loss term trains which part of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from qwendet.checks.loss.formula import BOX_TERMS
from qwendet.checks.loss.parts import parts
from qwendet.checks.loss.step import watch_step
from qwendet.checks.loss.watched import Watched
from qwendet.checks.result import Table, Verdict
from qwendet.errors import Problem
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.spread import of_this_process

TEXT = ("lm", "teacher", "student")
FROZEN, NO_PATH = "frozen", "no path"
PATHS = "look for detach(), .item(), .data or no_grad between this part and the loss"


@dataclass(frozen=True)
class Reach:
    """What one term's gradient reaches in one part of the model.

    Attributes:
        norm: of the gradient; ``None`` if no parameter of the part has one.
    """

    norm: float | None

    @property
    def cell(self) -> str:
        """For the table."""
        return NO_PATH if self.norm is None else f"{self.norm:.3g}"


def gradients(watched: Watched) -> Verdict:
    """Each term's gradient reaches the parts that it is to train, and no trainable parameter is cut off."""
    lesson = watched.row_of_kind(lesson=True)
    inputs: list[Tensor] = []
    if isinstance(watched.detector, FSDPModule):
        watched.detector.reshard()  # gathered by a forward without a backward, its parameters are others
    owned = parts(watched.detector)
    with _head_inputs(watched.detector, inputs):
        (share,) = watch_step(
            watched.trainer,
            [watched.collate([watched.subject.encoded[lesson]])],
            watched.detector,
        )
    trainable = {
        part: {name: p for name, p in parameters.items() if p.requires_grad}
        for part, parameters in owned.items()
    }
    matrix, connected = _matrix(share.losses.terms, trainable)
    problems = [
        problem
        for term, row in matrix.items()
        for part, reach in row.items()
        for problem in _judge(term, part, reach)
    ]
    names = {name for own in trainable.values() for name in own}
    cut = sorted(names - connected)
    if cut and not problems:
        what = f"{len(cut)} trainable parameters get no gradient from any term, such as {cut[0]}"
        problems.append(Problem(what, cut[0], PATHS))
    problems += _input_problems(share.losses.terms, inputs, trainable)
    rows = [
        (term, *(FROZEN if not trainable[part] else row[part].cell for part in owned))
        for term, row in matrix.items()
    ]
    table = Table("Norm of the gradient, by term and part", ("term", *owned), rows)
    seen = (
        f"{len(matrix)} terms reach the parts that they train; {len(names)} trainable parameters have a path"
    )
    return Verdict(seen, tuple(problems), (table,))


def _matrix(
    terms: Mapping[str, Tensor], trainable: Mapping[str, Mapping[str, nn.Parameter]]
) -> tuple[dict[str, dict[str, Reach]], set[str]]:
    """Gradient norms, and the names of all parameters that any term has a path to."""
    flat = [(part, name, p) for part, own in trainable.items() for name, p in own.items()]
    matrix: dict[str, dict[str, Reach]] = {}
    connected: set[str] = set()
    for term, value in terms.items():
        found: Sequence[Tensor | None] = [None] * len(flat)
        if value.requires_grad and flat:
            found = _gradients(value, [p for *_, p in flat])
        connected |= {name for (_, name, _), g in zip(flat, found, strict=True) if g is not None}
        matrix[term] = {
            part: _reach(g for (own, *_), g in zip(flat, found, strict=True) if own == part)
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


def _reach(found: Iterable[Tensor | None]) -> Reach:
    gradients = [gradient for gradient in found if gradient is not None]
    if not gradients:
        return Reach(None)
    total = torch.stack([of_this_process(gradient).double().square().sum() for gradient in gradients]).sum()
    if isinstance(gradients[0], DTensor):
        torch.distributed.all_reduce(total)
    return Reach(math.sqrt(total.item()))


def _judge(term: str, part: str, reach: Reach) -> list[Problem]:
    """Text terms train all but the head; the head's terms train all, boxes of a new head at first only it."""
    where = f"{term} → {part}"
    if term in TEXT and part == "head":
        if reach.norm is None:
            return []
        return [Problem(f"{term} has a gradient in the head, which no token sees", where, "see the detector")]
    if reach.norm is None:
        return [Problem(f"{term} has no path to {part}: it is computed, but does not train it", where, PATHS)]
    if not math.isfinite(reach.norm):
        return [
            Problem(f"the gradient of {term} in {part} is {reach.norm}", where, "see loss.empty and loss.nan")
        ]
    may_be_zero = term in BOX_TERMS and part != "head"  # regressors start at 0
    if reach.norm == 0 and not may_be_zero:
        return [
            Problem(f"the gradient of {term} in {part} is 0: the term does not depend on it", where, PATHS)
        ]
    return []


class _head_inputs:  # noqa: N801 - a context manager, used as one
    """Collects the tensors that the head is given: patches, context and label embeddings."""

    def __init__(self, detector: Qwen25VLWithDetection, inputs: list[Tensor]) -> None:
        self._head, self._inputs = detector.head, inputs

    def __enter__(self) -> None:
        if self._head is not None:
            self._handle = self._head.register_forward_pre_hook(
                lambda module, args: self._inputs.extend(args)
            )

    def __exit__(self, *args: object) -> None:
        if self._head is not None:
            self._handle.remove()


def _input_problems(
    terms: Mapping[str, Tensor], inputs: Sequence[Tensor], trainable: Mapping[str, Mapping[str, nn.Parameter]]
) -> list[Problem]:
    """What the vision tower and the language model give the head carries a gradient back to them."""
    if not inputs:
        return []
    patches, context, _, label_embeds, _ = inputs
    from_vision = bool(trainable["vision"])
    needed = [("vision patches", patches, from_vision)]
    any_before = from_vision or bool(trainable["merger"]) or bool(trainable["language"])
    needed.append(("language model's hidden states", context, any_before))
    needed.append(
        ("label embeddings", label_embeds, "language" in trainable and _embeds(trainable["language"]))
    )
    problems = []
    for name, tensor, is_needed in needed:
        if not is_needed:
            continue
        gradient = None
        if tensor.requires_grad and terms["class"].requires_grad:
            (gradient,) = torch.autograd.grad(terms["class"], [tensor], retain_graph=True, allow_unused=True)
        if gradient is None or not gradient.any():
            what = f"the head gets the {name} cut off from the graph: its loss does not train what made them"
            problems.append(Problem(what, "DetectionHead.forward", PATHS))
    return problems


def _embeds(language: Mapping[str, nn.Parameter]) -> bool:
    return any("embed_tokens" in name for name in language)
