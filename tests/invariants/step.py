"""One optimizer step of the real trainer, watched: what went into the loss, and what reached ``backward``.

    batches ─► get_batch_samples ─► training_step ─► compute_loss ─► LossManager ─► backward (only noted)
                                                         │ model
                                                         ├ Shallow   detector, graph cut at hidden states
                                                         ├ Replay    outputs that are there already
                                                         └ detector  with its whole graph

The graph from outputs to ``backward`` is small: derivatives of the loss cost nothing on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qwendet.checks.subject import as_in_training
from qwendet.encoding.collate import Batch
from qwendet.model.detector import DetectorOutput, Qwen25VLWithDetection
from qwendet.model.head import HeadOutput
from qwendet.model.losses import Losses, TokenLosses
from qwendet.training.trainer import DetectionTrainer


@dataclass(frozen=True)
class Share:
    """A micro-batch's share of the step's loss.

    Attributes:
        batch: the micro-batch.
        output: what the model returned.
        losses: what the loss manager made of it.
        counts: what it was told to divide by.
        backpropagated: the scalar that ``backward`` was called on.
    """

    batch: Batch
    output: DetectorOutput
    losses: Losses
    counts: Tensor
    backpropagated: Tensor


class UnseenStepError(Exception):
    """The trainer computed a loss in a way that cannot be followed."""


class Shallow(nn.Module):
    """The detector without dropout, its graph cut off: it begins at hidden states and the head's outputs.

    Args:
        detector: the model.

    Attributes:
        hidden: ``(B, L, text)`` the language model's states of the last call, a leaf.
    """

    def __init__(self, detector: Qwen25VLWithDetection) -> None:
        super().__init__()
        self.detector = detector
        self.hidden: Tensor | None = None

    def forward(self, batch: Batch) -> DetectorOutput:
        """Run the detector."""
        handle = self.detector.vlm.model.language_model.register_forward_hook(self._cut)
        try:
            with torch.no_grad():
                output: DetectorOutput = as_in_training(self.detector)(batch)
        finally:
            handle.remove()
        return replace(output, head=_head_leaves(output.head, None))

    def _cut(self, module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = self.hidden = output.last_hidden_state.detach().requires_grad_()
        torch.set_grad_enabled(True)  # until the end of the surrounding no_grad
        return output


class Replay(nn.Module):
    """Outputs that are there already, one a call.

    Args:
        outputs: in the order of the calls.
    """

    def __init__(self, outputs: Sequence[DetectorOutput]) -> None:
        super().__init__()
        self._outputs = iter(outputs)

    def forward(self, batch: Batch) -> DetectorOutput:
        """Return the next."""
        return leaves(next(self._outputs))


def leaves(output: DetectorOutput, dtype: torch.dtype | None = None) -> DetectorOutput:
    """The same numbers as leaves of a new graph, in ``dtype`` if one is given."""
    tokens = output.tokens
    if tokens is not None:
        nll = tokens.nll.detach().to(dtype or tokens.nll.dtype)
        own = tokens.is_student
        sums = ((nll * ~own).sum().requires_grad_(), (nll * own).sum().requires_grad_())
        tokens = TokenLosses(nll, own, *sums)
    return DetectorOutput(tokens, _head_leaves(output.head, dtype))


def _head_leaves(head: HeadOutput | None, dtype: torch.dtype | None) -> HeadOutput | None:
    if head is None:
        return None
    logits, boxes = (
        tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_()
        for tensor in (head.logits, head.boxes_cxcywh)
    )
    return HeadOutput(logits, boxes, head.valid, head.stage_sizes)


def row_of(output: DetectorOutput, row: int, tokens: slice, asked: Tensor) -> DetectorOutput:
    """One sample's part of a batch's outputs, in float64.

    Args:
        output: of the batch.
        row: the sample.
        tokens: its part of the supervised tokens.
        asked: ``(C,)`` bool, its labels among those of the batch.
    """
    assert output.tokens is not None
    of_row = {"nll": output.tokens.nll[tokens], "is_student": output.tokens.is_student[tokens]}
    own = replace(output.tokens, **of_row)
    head = output.head
    if head is not None:
        mine = slice(row, row + 1)
        head = HeadOutput(
            head.logits[mine][..., asked], head.boxes_cxcywh[mine], head.valid[mine], head.stage_sizes
        )
    return leaves(DetectorOutput(own, head), torch.float64)


def watch_step(trainer: DetectionTrainer, batches: Sequence[Batch], model: nn.Module) -> list[Share]:
    """Let the trainer take an optimizer step, up to its backward passes, which are left out.

    Args:
        trainer: the trainer.
        batches: the step's micro-batches.
        model: what it trains: the detector, or a stand-in from this module.

    Returns:
        The share of each micro-batch.

    Raises:
        UnseenStepError: if there is not one loss and one backward pass for each.
    """
    taken, counts = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(taken)  # as the Trainer's loop does
    shares = []
    for batch in taken:
        with _watching(trainer, model) as seen:
            trainer.training_step(model, batch, counts)
        if not (len(seen.outputs) == len(seen.losses) == len(seen.backward) == 1):
            raise UnseenStepError(
                f"expected one forward, one LossManager call and one backward pass a micro-batch,"
                f" got {len(seen.outputs)}, {len(seen.losses)} and {len(seen.backward)}"
            )
        divided_by, losses = seen.losses[0]
        shares.append(Share(batch, seen.outputs[0], losses, divided_by, seen.backward[0]))
    return shares


class _Seen(TorchFunctionMode):
    """What a step made. Between enter and exit, backward passes of this thread are noted, and not run."""

    def __init__(self, scaler: Any) -> None:
        super().__init__()
        self.scaler = scaler
        self.outputs: list[DetectorOutput] = []
        self.losses: list[tuple[Tensor, Losses]] = []
        self.backward: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.backward:
            return func(*args, **(kwargs or {}))
        self.backward.append(args[0] if self.scaler is None else args[0] / self.scaler.get_scale())
        return None


@contextmanager
def _watching(trainer: DetectionTrainer, model: nn.Module) -> Iterator[_Seen]:
    seen, manager = _Seen(trainer.accelerator.scaler), trainer.loss_manager

    def compute(tokens: Any, head: Any, targets: Any, counts: Tensor) -> Losses:
        losses = manager(tokens, head, targets, counts)
        seen.losses.append((counts, losses))
        return losses

    handle = model.register_forward_hook(lambda module, args, output: seen.outputs.append(output))
    trainer.loss_manager = compute  # type: ignore[assignment]
    try:
        with seen:
            yield seen
    finally:
        trainer.loss_manager = manager
        handle.remove()
