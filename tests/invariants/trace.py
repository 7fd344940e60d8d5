"""What really went through a model: recorded by hooks while train's and infer's own code runs.

Predictor.predict ─┐                       ┌─► detector calls: batch, output
detector(batch) ───┴─► the model, hooked ──┼─► language model calls: positions, hidden states
                                           ├─► head calls: patches, context, labels
                                           └─► published model calls (generation): ids, logits
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from qwendet.encoding.collate import Batch, to_device
from qwendet.model.detector import DetectorOutput, Qwen25VLWithDetection
from qwendet.model.head import HeadOutput


@dataclass(frozen=True)
class Reading:
    """One call of the language model.

    Attributes:
        position_ids: as it was given: ``(3 or 4, B, L)``, ``(B, L)`` or nothing.
        embeds: ``(B, L, text)`` input embeddings.
        hidden: ``(B, L, text)`` what came out.
    """

    position_ids: Tensor | None
    embeds: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Look:
    """One call of the head: its inputs by name, and what it predicted."""

    inputs: dict[str, Tensor]
    output: HeadOutput


@dataclass
class Trace:
    """All calls, each kind in order.

    Attributes:
        batches: what the detector was given.
        outputs: what it returned.
        readings: calls of the language model, those of the detector first.
        looks: calls of the head.
        prompts: keyword arguments of the base model's own calls, as generation makes them.
        logits: what those returned for the last position, ``(B, vocabulary)``.
    """

    batches: list[Batch] = field(default_factory=list)
    outputs: list[DetectorOutput] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


HEAD_INPUTS = ("patches", "context", "mask", "label_embeds", "label_mask", "asked")


@contextmanager
def recording(detector: Qwen25VLWithDetection) -> Iterator[Trace]:
    """Record every call until the block ends; what is computed stays as it is."""
    trace = Trace()

    def on_detector(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # Its reading stands before those of generation, whichever was asked first.
        trace.readings.insert(len(trace.batches), trace.readings.pop())
        trace.batches.append(args[0] if args else kwargs["batch"])
        trace.outputs.append(output)

    def on_language_model(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = kwargs.get
        trace.readings.append(
            Reading(
                given("position_ids"),
                given("inputs_embeds"),
                output.last_hidden_state.detach(),
            )
        )

    def on_head(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = dict(zip(HEAD_INPUTS, args, strict=False)) | kwargs
        logits, boxes = output.logits.detach(), output.boxes_cxcywh.detach()
        seen = replace(output, logits=logits, boxes_cxcywh=boxes)
        trace.looks.append(Look({name: tensor.detach() for name, tensor in given.items()}, seen))

    def on_published(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        trace.prompts.append(dict(kwargs))
        trace.logits.append(output.logits[:, -1])

    hooked = [
        (detector, on_detector),
        (detector.vlm.model.language_model, on_language_model),
        (detector.vlm, on_published),
        *([] if detector.head is None else [(detector.head, on_head)]),
    ]
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooked]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(detector: Qwen25VLWithDetection, batch: Batch, *, with_tokens: bool = True) -> Trace:
    """Run the detector on a batch as it stands, in the mode it is in, and record it."""
    with recording(detector) as trace:
        detector(to_device(batch, detector.device), with_tokens=with_tokens)
    return trace


@contextmanager
def without(holder: nn.Module, name: str) -> Iterator[None]:
    """Take a list of layers away until the block ends: what enters the first comes out of the last."""
    layers = getattr(holder, name)
    setattr(holder, name, nn.ModuleList())
    try:
        yield
    finally:
        setattr(holder, name, layers)


@contextmanager
def zeroed(parameter: nn.Parameter) -> Iterator[None]:
    """Set a parameter to 0 until the block ends."""
    kept = parameter.data
    parameter.data = torch.zeros_like(kept)
    try:
        yield
    finally:
        parameter.data = kept
