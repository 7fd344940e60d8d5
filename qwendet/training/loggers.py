"""Where a run's rows and pictures are shown: TensorBoard, Weights & Biases.

Names are shown as they are logged, so that a board groups them by what they are: ``loss/…``, ``grad_norm/…``.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwendet.config.schema import Config
from qwendet.errors import EnvironmentLacksError

WANDB_PROJECT = "qwendet"


class Board(Protocol):
    """Something that shows numbers and pictures of a run."""

    def open(self, step: int) -> None:
        """Begin, or go on after so many finished steps."""

    def numbers(self, step: int, row: Mapping[str, float]) -> None:
        """Show numbers by name."""

    def pictures(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        """Show pictures by name."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Event files in ``OUTPUT_DIR/tensorboard``.

    Args:
        config: the run's.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._writer: Any = None

    def open(self, step: int) -> None:
        """Begin a file; points of later steps than the one that a run goes on from are hidden."""
        from torch.utils.tensorboard import SummaryWriter  # seconds that a run without it need not wait

        folder = Path(self.config.train.output_dir) / "tensorboard"
        writer: Any = SummaryWriter
        self._writer = writer(str(folder), purge_step=step + 1 if step else None)
        self._writer.add_text("config", f"```\n{self.config.model_dump_json(indent=1)}\n```", step)

    def numbers(self, step: int, row: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def pictures(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        """Add a picture to each row of pictures."""
        for name, picture in pictures:
            self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, its files in ``OUTPUT_DIR/wandb``; variables such as ``WANDB_MODE`` hold.

    Args:
        config: the run's.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._run: Any = None

    def open(self, step: int) -> None:
        """Begin a run, named after the output folder."""
        import wandb

        folder = Path(self.config.train.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
                name=os.environ.get("WANDB_NAME", folder.name),
                dir=str(folder),
                config=json.loads(self.config.model_dump_json()),
                settings=wandb.Settings(console="off"),  # it would put itself between terminal and progress
            )
        except wandb.Error as error:
            raise EnvironmentLacksError(
                f"Weights & Biases cannot be used: {str(error).splitlines()[0]}",
                "train.report_to",
                "run `wandb login`, set WANDB_MODE=offline, or leave wandb out",
            ) from error

    def numbers(self, step: int, row: Mapping[str, float]) -> None:
        """Log a row."""
        self._run.log(dict(row), step=step)

    def pictures(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        """Log pictures."""
        import wandb

        self._run.log({name: wandb.Image(picture) for name, picture in pictures}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


BOARDS: Mapping[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def require_boards(config: Config) -> None:
    """Refuse ``train.report_to: wandb`` where the package is not installed.

    Raises:
        EnvironmentLacksError: with the command that installs it.
    """
    if "wandb" in config.train.report_to and importlib.util.find_spec("wandb") is None:
        raise EnvironmentLacksError(
            "wandb needs the package wandb",
            "train.report_to",
            "pip install 'qwendet[wandb]', or leave it out",
        )


class BoardReport(TrainerCallback):
    """Shows what the Trainer logs on the boards of ``train.report_to``; the first process does.

    Args:
        config: the run's.
    """

    def __init__(self, config: Config) -> None:
        self.boards: list[Board] = [BOARDS[name](config) for name in config.train.report_to]
        self._is_open = False
        self._blocks = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the boards."""
        if state.is_world_process_zero and not self._is_open:
            for board in self.boards:
                board.open(state.global_step)
            self._is_open = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show a row."""
        if self._is_open:
            for board in self.boards:
                board.numbers(state.global_step, logs or {})

    def pictures(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        """Show pictures by name."""
        if self._is_open:
            for board in self.boards:
                board.pictures(step, pictures)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the boards at the end of the block; of blocks inside each other, the outermost."""
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            if self._is_open and not self._blocks:
                self._is_open = False
                for board in self.boards:
                    board.close()
