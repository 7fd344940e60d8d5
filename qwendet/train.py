"""One training run from the first check to the last metric.

DIR/checkpoint-N/   DIR/best/   DIR/final/   DIR/tensorboard/   DIR/metrics.json   DIR/eval/predictions.jsonl
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from qwendet.checks.config.suite import require_config_checks
from qwendet.checks.preflight import require_preflight
from qwendet.config.schema import Config
from qwendet.errors import ConfigError, EnvironmentLacksError
from qwendet.evaluation.validation import Validation, validate, validation_samples
from qwendet.files import atomic_file, atomic_folder, put_back_lost, require_place
from qwendet.inference.detections import write_predictions
from qwendet.inference.sharding import peers_needed
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.training.arguments import shared_memory_error
from qwendet.training.best import LOGGED, Best, find_best
from qwendet.training.build import create_trainer
from qwendet.training.callbacks import ProgressReport, StopOnSignal
from qwendet.training.resume import latest_checkpoint, saving
from qwendet.training.trainer import DetectionTrainer

logger = logging.getLogger("qwendet")


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    Attributes:
        final: the last checkpoint; ``None`` if the run was stopped before its end.
        metrics: of the validation samples; ``None`` if there are none, and on all ranks but the first.
        stopped_by: signal that stopped it; empty if it came to its end.
        before: metrics of the same samples before the first step, with ``train.evaluate_base``.
        best: the evaluation whose model is in ``best/``, with ``train.eval_steps``.
    """

    output_dir: Path
    final: Path | None
    metrics: dict[str, float] | None
    stopped_by: str = ""
    before: dict[str, float] | None = None
    best: Best | None = None


def train(config: Config, *, resume: bool = False) -> RunSummary:
    """Train, save and evaluate.

    What cannot be used is refused before anything is written; a loss that is not finite ends the run later.
    """
    output_dir = Path(config.train.output_dir)
    checkpoint = latest_checkpoint(output_dir) if resume else None
    if not resume:
        _require_unused(output_dir)
    require_config_checks(config)
    with peers_needed():
        return _train_and_save(config, checkpoint)


def _train_and_save(config: Config, checkpoint: Path | None) -> RunSummary:
    output_dir = Path(config.train.output_dir)
    trainer = create_trainer(config)
    trainer.callback_handler.callbacks.insert(0, Preflight(trainer))
    with trainer.trackers.closing():
        stopped_by = _train(trainer, checkpoint)
        if stopped_by:
            return RunSummary(output_dir, final=None, metrics=None, stopped_by=stopped_by)
        final = output_dir / "final"
        with trainer.averaged():
            weights = trainer.gathered_weights()
            if trainer.is_world_process_zero():  # one of the processes that torchrun starts
                with saving(final), atomic_folder(final, replace=True) as folder:
                    trainer.save_bundle(folder, weights)
            metrics = _evaluate(trainer, final)
        best = None if config.train.eval_steps is None else find_best(output_dir)
        return RunSummary(output_dir, final, metrics, before=_base_metrics(trainer), best=best)


class Preflight(TrainerCallback):
    """Checks the model as it will be trained: on its device, spread over processes, resumed.

    All processes look at the same samples, and so take part in the same collective operations.
    """

    def __init__(self, trainer: DetectionTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        """Run the checks of ``train.preflight``."""
        require_preflight(self.trainer.bundle)


def _evaluate(trainer: DetectionTrainer, final: Path) -> dict[str, float] | None:
    """Evaluate the model in memory, all processes together.

    Where it is spread over them, the first process loads what they have just saved, and the others are done.
    """
    config = trainer.bundle.config
    is_first = trainer.is_world_process_zero()
    if not config.train.evaluate or config.data.val is None or (trainer.is_sharded and not is_first):
        return None
    # The base has answered in text: so does the trained model, beside its head.
    with_text = config.train.evaluate_base and trainer.bundle.has_new_head and config.infer.mode != "text"
    bundle = load(config_of_checkpoint(final), for_inference=True) if trainer.is_sharded else trainer.bundle
    validation = None if with_text else trainer.last_validation
    if validation is None:
        mode = "both" if with_text else None
        validation = evaluate(bundle, mode=mode, alone=trainer.is_sharded)
        trainer.show(validation.metrics, validation)
    if not is_first:
        return None
    write_predictions(validation.predictions, final.parent / "eval" / "predictions.jsonl")
    with atomic_file(final.parent / "metrics.json") as path:
        path.write_text(json.dumps(validation.metrics, indent=1) + "\n", encoding="utf-8")
    return validation.metrics


def _base_metrics(trainer: DetectionTrainer) -> dict[str, float] | None:
    """What was logged before the first step, in an earlier part of the run, too."""
    if not trainer.bundle.config.train.evaluate_base:
        return None
    rows = (row for row in trainer.state.log_history if row["step"] == 0)
    base = {name.removeprefix(LOGGED): value for row in rows for name, value in row.items() if LOGGED in name}
    if not base:
        logger.warning("train.evaluate_base: the base was not measured when this run began")
    return base


def _require_unused(output_dir: Path) -> None:
    require_place(output_dir, "train.output_dir", is_folder=True)
    put_back_lost(output_dir)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        other = "choose another with --set train.output_dir=DIR"
        can_go_on = any(output_dir.glob("checkpoint-*"))
        raise ConfigError(
            "the output directory already holds a run",
            str(output_dir),
            f"continue it with --resume, or {other}" if can_go_on else f"remove it, or {other}",
        )


def _train(trainer: DetectionTrainer, checkpoint: Path | None) -> str:
    callbacks = trainer.callback_handler.callbacks
    (signals,) = (callback for callback in callbacks if isinstance(callback, StopOnSignal))
    (report,) = (callback for callback in callbacks if isinstance(callback, ProgressReport))
    try:
        with signals.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except RuntimeError as error:
        known = _of_the_machine(error)
        if known is None:
            raise
        raise known from error
    finally:
        report.close()
    return signals.stopped_by


def _of_the_machine(error: RuntimeError) -> EnvironmentLacksError | None:
    """What a torch error that is not ours means; ``None`` if it tells nothing about the machine.

    But for the GPU's memory torch has no classes for them, only words.
    """
    words = (str(error) or type(error).__name__).splitlines()[0]
    if "allocate shared memory" in str(error):
        return shared_memory_error("a batch of a worker process does not fit into the shared memory")
    if isinstance(error, torch.OutOfMemoryError):
        return EnvironmentLacksError(
            f"the GPU's memory does not suffice ({words})",
            "training",
            "lower train.batch_size (and raise train.gradient_accumulation_steps) or data.max_pixels,"
            " or set model.gradient_checkpointing to true",
        )
    if "DataLoader worker" in words:
        return EnvironmentLacksError(
            f"a process that reads samples is gone ({words})",
            "data.num_workers",
            "most often the machine ran out of memory: lower data.num_workers, then go on with --resume",
        )
    return None


def evaluate(bundle: Bundle, *, mode: str | None = None, alone: bool = False) -> Validation:
    """Predict the validation samples; ``alone`` in this process, else in all of the launcher's."""
    return validate(bundle, validation_samples(bundle.config), mode=mode, alone=alone)
