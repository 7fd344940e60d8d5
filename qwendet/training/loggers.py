"""Where a run's rows and pictures are shown: TensorBoard, Weights & Biases, by accelerate's trackers.

Names are shown as they are logged, grouped by what they are: ``loss/…``, ``grad_norm/…``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwendet.config.schema import Config
from qwendet.errors import EnvironmentLacksError


def _tensorboard(config: Config, step: int) -> TensorBoardTracker:
    """Event files in ``OUTPUT_DIR/tensorboard``; points after the step that a run goes on from are hidden."""
    tracker = TensorBoardTracker(
        "tensorboard", config.train.output_dir, purge_step=step + 1 if step else None
    )
    tracker.start()
    tracker.log({"config": f"```\n{config.model_dump_json(indent=1)}\n```"}, step)
    return tracker


def _wandb(config: Config, step: int) -> WandBTracker:
    """A run named after the output folder, its files in ``OUTPUT_DIR/wandb``; ``WANDB_MODE`` holds."""
    import wandb

    folder = Path(config.train.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", "qwendet"),
        name=os.environ.get("WANDB_NAME", folder.name),
        dir=str(folder),
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(console="off"),  # it would put itself between terminal and progress
    )
    try:
        tracker.start()
    except wandb.Error as error:
        raise EnvironmentLacksError(
            f"Weights & Biases cannot be used: {str(error).splitlines()[0]}",
            "train.report_to",
            "run `wandb login`, set WANDB_MODE=offline, or leave wandb out",
        ) from error
    return tracker


class TrackerCallback(TrainerCallback):
    """Shows what the Trainer logs on the trackers of ``train.report_to``; the first process does."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.trackers: list[GeneralTracker] = []
        self._blocks = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the trackers."""
        if state.is_world_process_zero and not self.trackers:
            begin = {"tensorboard": _tensorboard, "wandb": _wandb}
            self.trackers = [
                begin[name](self.config, state.global_step) for name in self.config.train.report_to
            ]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show a row."""
        for tracker in self.trackers:
            tracker.log(dict(logs or {}), state.global_step)

    def pictures(self, step: int, pictures: Sequence[tuple[str, Image.Image]]) -> None:
        """Show pictures by name."""
        for tracker in self.trackers:
            own = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: np.asarray(picture)[None] for name, picture in pictures}, step, **own)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the trackers at the end of the block; of blocks inside each other, the outermost."""
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            while self.trackers and not self._blocks:
                self.trackers.pop().finish()
