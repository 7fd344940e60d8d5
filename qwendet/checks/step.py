"""One optimizer step of the real trainer, watched: what went into the loss, and what reached ``backward``.

    batches ─► get_batch_samples ─► training_step ─► compute_loss ─► LossManager ─► backward (only noted)
                                                         │ model
                                                         ├ Shallow   the detector, cut off behind its outputs
                                                         ├ Replay    outputs that are there already
                                                         └ detector  with its whole graph

The graph from outputs to ``backward`` is small: derivatives of the loss cost nothing on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qwendet.data.collate import Batch
from qwendet.model.detector import DetectorOutput
from qwendet.model.head import HeadOutput
from qwendet.model.losses import Losses, TokenLosses
from qwendet.training import DetectionTrainer


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
    """The detector, its outputs cut off from its graph.

    Args:
        detector: the model.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch) -> DetectorOutput:
        """Run the detector; the outputs are leaves."""
        with torch.no_grad():
            output: DetectorOutput = self.detector(batch)
        return leaves(output)


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

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_()

    tokens, head = output.tokens, output.head
    return DetectorOutput(
        None if tokens is None else TokenLosses(leaf(tokens.nll), tokens.is_student),
        None
        if head is None
        else HeadOutput(leaf(head.logits), leaf(head.boxes_cxcywh), head.valid, head.stage_sizes),
    )


def row_of(output: DetectorOutput, row: int, tokens: slice, dtype: torch.dtype) -> DetectorOutput:
    """One sample's part of a batch's outputs.

    Args:
        output: of the batch.
        row: the sample.
        tokens: its part of the supervised tokens.
        dtype: type of the part.
    """
    assert output.tokens is not None
    own = TokenLosses(output.tokens.nll[tokens], output.tokens.is_student[tokens])
    head = output.head
    if head is not None:
        mine = slice(row, row + 1)
        head = HeadOutput(head.logits[mine], head.boxes_cxcywh[mine], head.valid[mine], head.stage_sizes)
    return leaves(DetectorOutput(own, head), dtype)


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


class _Seen:
    def __init__(self) -> None:
        self.outputs: list[DetectorOutput] = []
        self.losses: list[tuple[Tensor, Losses]] = []
        self.backward: list[Tensor] = []


@contextmanager
def _watching(trainer: DetectionTrainer, model: nn.Module) -> Iterator[_Seen]:
    seen, manager = _Seen(), trainer.loss_manager
    scaler = trainer.accelerator.scaler
    backward = Tensor.backward

    def compute(tokens: Any, head: Any, targets: Any, counts: Tensor) -> Losses:
        losses = manager(tokens, head, targets, counts)
        seen.losses.append((counts, losses))
        return losses

    def note(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        seen.backward.append(tensor if scaler is None else tensor / scaler.get_scale())

    handle = model.register_forward_hook(lambda module, args, output: seen.outputs.append(output))
    trainer.loss_manager = compute  # type: ignore[assignment]
    Tensor.backward = note  # type: ignore[method-assign, assignment]
    try:
        yield seen
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]
        trainer.loss_manager = manager
        handle.remove()
