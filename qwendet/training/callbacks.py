"""What listens to the Trainer: the progress bar, signals that end a run with a checkpoint."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwendet.progress import Advance, no_advance, track

logger = logging.getLogger("qwendet")


class ProgressReport(TrainerCallback):
    """Shows steps, rate, time left and the loss."""

    def __init__(self) -> None:
        self._bar = ExitStack()
        self._advance: Advance = no_advance
        self._text = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar; say where a run that goes on has no step left."""
        if 0 < state.max_steps <= state.global_step:
            logger.warning(
                "no step is left: the checkpoint is at step %d of %d (train.max_steps, train.epochs)",
                state.global_step,
                state.max_steps,
            )
        self._advance = self._bar.enter_context(track("training", state.max_steps))
        self._advance(state.global_step, "")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar, and have the last steps logged however few they are."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        self._advance(state.global_step, self._text)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the loss and the pace."""
        row = logs or {}
        if "loss/total" in row:
            terms = {
                name: row[f"loss/{name}"] for name in ("total", "lm", "detection") if f"loss/{name}" in row
            }
            rate, waiting = row["throughput/samples_per_second"], row["time/waiting_for_data"]
            self._text = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            self._text += f" ({rate:.3g} samples/s, waiting for data {waiting:.0%})"

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, if it is open."""
        self._bar.close()


class StopOnSignal(TrainerCallback):
    """Ends training after the current step, with a checkpoint, on SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.stopped_by = ""
        self._received: set[int] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the block; the same one a second time ends at once.

        A launcher that is interrupted passes SIGTERM on to processes that had SIGINT from the terminal.
        """
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number in self._received:
            raise KeyboardInterrupt
        self._received.add(number)
        if self.stopped_by:
            return
        self.stopped_by = signal.Signals(number).name
        logger.warning("%s: finishing this step and saving a checkpoint", self.stopped_by)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the Trainer to save and stop, on all ranks after the same step."""
        if args.world_size > 1:
            self.stopped_by = _agreed(self.stopped_by, args.device)
        if self.stopped_by:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False  # a launcher does not wait long


def _agreed(stopped_by: str, device: torch.device) -> str:
    """The signal that any rank received: they reach ranks in different steps, and all must save together."""
    number = torch.tensor(signal.Signals[stopped_by].value if stopped_by else 0, device=device)
    torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
    return signal.Signals(int(number)).name if int(number) else ""
