"""Training: Hugging Face's Trainer with our loss, parameter groups, and checkpoints.

Read in transformers 5.23: ``get_batch_samples`` sees all micro-batches of an optimizer step, so the
counts that the means divide by are gathered there, over all ranks; ``compute_loss`` returns this
micro-batch's share of the step's loss, times the number of processes because DDP averages.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from qwendet.data.samples import Sample
from qwendet.encoding.collate import Batch, require_left_padding
from qwendet.encoding.dataset import TrainingSamples
from qwendet.errors import ConfigError, QwendetError
from qwendet.evaluation.validation import Validation, validate, validation_pictures, validation_samples
from qwendet.files import publish_folder
from qwendet.loader import Bundle, config_of_checkpoint, load, restore
from qwendet.loading.checkpoint import save_checkpoint
from qwendet.loading.manifest import read_manifest
from qwendet.model.detector import DetectorOutput
from qwendet.model.losses import Losses, LossManager, step_counts
from qwendet.model.matching import Targets
from qwendet.model.spread import whole
from qwendet.training.best import FOLDER, LOGGED, Best, evaluations, is_over, judge
from qwendet.training.ema import WeightAverage
from qwendet.training.evaluation_mode import evaluation_mode
from qwendet.training.freed_memory import freed_memory_kept
from qwendet.training.loggers import TrackerCallback
from qwendet.training.loss_scale import SCALE_TOO_HIGH, scale_was_too_high
from qwendet.training.lr_schedule import schedule
from qwendet.training.metrics import TrainingLog, group_norms, step_volume
from qwendet.training.param_groups import parameter_groups
from qwendet.training.prefetch import StepPrefetcher
from qwendet.training.resume import reading_state, record_training_state, require_same_run, rotate, saving
from qwendet.training.sampler import EpochOrder

logger = logging.getLogger("qwendet")

STAGING = ".writing"


class TrainingDivergedError(QwendetError):
    """A loss or gradient is not finite; nothing was updated with it."""

    exit_code = 1


class DetectionTrainer(Trainer):
    """Hugging Face's Trainer for a :class:`~qwendet.loader.Bundle`."""

    loss_is_scaled_for_ga = True  # the loss is already this micro-batch's share of the step's

    def __init__(
        self,
        bundle: Bundle,
        train_dataset: TrainingSamples,
        args: TrainingArguments,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.bundle = bundle
        self._run = Path(bundle.config.train.output_dir)
        self.loss_manager = LossManager(bundle.config.loss, bundle.config.detection.one_to_many)
        self.step_log = TrainingLog()
        self.trackers = TrackerCallback(bundle.config)
        self.last_validation: Validation | None = None  # of this step, where all samples were predicted
        self._average: WeightAverage | None = None
        self._first_step_seen = False
        self._skipped_steps = 0
        super().__init__(
            model=bundle.detector,
            args=args,
            data_collator=bundle.collator(packing=bundle.config.train.packing),
            train_dataset=train_dataset,
            eval_dataset=[],  # `evaluate` knows the samples
            callbacks=[*callbacks, self.trackers],
        )
        self._prefetcher = StepPrefetcher(self.args.device)
        self.add_callback(self._prefetcher)
        self.remove_callback(PrinterCallback)  # prints every log on stdout

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train."""
        self._require_whole_model()
        workers_prefetch = self.args.dataloader_num_workers > 0
        prefetching = nullcontext() if workers_prefetch else self._prefetcher.running()
        memory = freed_memory_kept() if self.args.device.type == "cpu" else nullcontext()
        with memory, prefetching, self.trackers.closing():
            return super().train(*args, **kwargs)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Begin the average of ``train.ema``, or go on with it, where the weights will train."""
        self.args.eval_on_start = self._has_to_evaluate()
        self.state.eval_steps = self.bundle.config.train.eval_steps or 0  # not those of the checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[no-untyped-call]
        settings = self.bundle.config.train.ema
        if settings is not None:
            self._average = WeightAverage(self.bundle.detector, settings)
            self.add_callback(self._average)
            if resume_from_checkpoint is not None:
                self._average.load(Path(resume_from_checkpoint))
        return prepared

    def _has_to_evaluate(self) -> bool:
        """Before the first step by ``train.evaluate_base``; later, where a signal left the evaluation out."""
        train, state = self.bundle.config.train, self.state
        step, every = state.global_step, train.eval_steps
        if step == 0:
            return train.evaluate_base
        rows = (row for row in state.log_history if row["step"] == step)
        was_evaluated = any(name.startswith(LOGGED) for row in rows for name in row)
        return every is not None and (step % every == 0 or step >= state.max_steps) and not was_evaluated

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train for an epoch; where a run goes on from its last checkpoint, nothing is left to do."""
        seen = evaluations(self.state.log_history, self.bundle.config.best_metric())
        ended_early = is_over(seen, self.bundle.config.train.early_stopping)
        if self.state.global_step >= self.state.max_steps or ended_early:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    # Data and loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        samples: Any = self.train_dataset
        return EpochOrder(samples, self.args.train_batch_size, self.args.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Take an optimizer step's micro-batches and count its tokens and boxes over all ranks."""
        with self.step_log.waiting():
            batches = self._prefetcher.take(epoch_iterator, num_batches)
        if not self._first_step_seen:  # later ones need no look at the device
            if self.is_sharded:
                self.bundle.detector.require_ties()
            for batch in batches:
                require_left_padding(batch)
            self._first_step_seen = True
        counts, volume = step_counts(batches), step_volume(batches)
        gathered: Tensor = self.accelerator.gather(torch.cat([counts, volume]).to(device)[None])
        total = gathered.sum(0)
        self.step_log.begin_step(total[len(counts) :])
        return batches, total[: len(counts)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's loss, times the number of processes."""
        assert isinstance(num_items_in_batch, Tensor)
        output, losses = self.losses(model, inputs, num_items_in_batch)
        self.step_log.add(losses.terms | {"total": losses.total}, inputs["where"])
        total = losses.total * self.accelerator.num_processes
        return (total, output) if return_outputs else total

    def losses(self, model: nn.Module, batch: Batch, counts: Tensor) -> tuple[DetectorOutput, Losses]:
        """What the model returns for a micro-batch, and its terms, divided by the step's counts."""
        output = model(batch)
        targets = Targets(batch["target_boxes_cxcywh"], batch["target_label_ids"], batch["num_boxes"])
        return output, self.loss_manager(output.tokens, output.head, targets, counts)

    # FSDP

    def create_accelerator_and_postprocess(self) -> None:
        """Build the accelerator; under FSDP mixed precision is the detector's own, as it is without FSDP.

        accelerate would have FSDP cast every weight, the head's and all outputs, sums of losses among them.
        """
        super().create_accelerator_and_postprocess()
        if self.is_sharded:
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()

    # What is logged is what was back-propagated

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip; then, before the optimizer's step, refuse anything that is not finite.

        A loss that is not finite must stop the run before the update, so the host has to wait for the device
        in each step. It does so once: all that it wants to know comes in one transfer.
        """
        norms = self._group_norms()
        total = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        norms["grad_norm"] = whole(total)
        names, terms = self.step_log.take_terms()
        terms = self.accelerator.reduce(terms, reduction="sum")
        optimizer: Any = self.optimizer
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        self._require_finite(*self.step_log.end_step(names, terms, norms, rates))
        return total

    def _group_norms(self) -> dict[str, Tensor]:
        """Norm of each group's gradients, before they are clipped, in a step whose row is logged.

        Gradients are the step's: added up over micro-batches, averaged over processes. Where they are spread
        over processes (FSDP) no process has a group's.
        """
        step = self.state.global_step + 1
        is_logged = step % self.state.logging_steps == 0 or step >= self.state.max_steps
        if not is_logged or self.is_sharded:
            return {}
        optimizer, scaler = self.optimizer, self.accelerator.scaler
        assert optimizer is not None
        scale = 1.0 if scaler is None else scaler.get_scale()  # in float16 they are still scaled up
        norms = group_norms(optimizer.param_groups, scale)
        return {f"grad_norm/{group}": norm for group, norm in norms.items()}

    def _require_finite(self, terms: dict[str, float], norms: dict[str, float]) -> None:
        sources, self.step_log.sources = self.step_log.sources, []
        broken = [name for name, value in terms.items() if not math.isfinite(value)]
        if not broken and not math.isfinite(norms.get("grad_norm", 0.0)):
            if scale_was_too_high(self.accelerator, self.bundle.detector):
                self._skipped_steps += 1
                logger.warning("step %d is skipped: %s", self.state.global_step + 1, SCALE_TOO_HIGH)
            else:
                broken = ["the gradient norm"]
        if broken:
            raise TrainingDivergedError(
                f"step {self.state.global_step + 1}: not finite: {', '.join(broken)}",
                f"samples {', '.join(sources[:8])}{' …' if len(sources) > 8 else ''}",
                "look at these samples, lower train.learning_rate, or set model.dtype to float32",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what :mod:`qwendet.training.metrics` tells of the steps since the last row."""
        if "loss" in logs:
            logs |= self.step_log.row()
            if self.accelerator.scaler is not None:
                logs["skipped_steps"] = float(self._skipped_steps)
        super().log(logs, start_time)

    # Validation during training

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Predict ``train.eval_samples`` validation samples, log metrics and pictures, and leave no trace.

        Before the first step (``train.evaluate_base``) it is all of them, in text if the head is new.
        The processes of a launcher share the samples; each returns all metrics.
        """
        is_start = self.state.global_step == 0
        samples = validation_samples(self.bundle.config) if is_start else self._validation_samples
        mode = "text" if is_start and self.bundle.has_new_head else None
        self._prefetcher.wait()  # tokenizer and image processor are the same
        with self.step_log.pausing(), self.averaged():
            with evaluation_mode(self.bundle.detector):
                validation = self._validated(samples, mode)
            (measured,) = broadcast_object_list([validation and validation.metrics])
            metrics = self.show(measured, validation)
            if not is_start:
                is_whole = self.bundle.config.train.eval_samples is None
                self.last_validation = validation if is_whole else None
                self._judge()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _validated(self, samples: list[Sample], mode: str | None) -> Validation | None:
        """What the model finds; under FSDP the first process alone knows, by a whole one of its own."""
        if not self.is_sharded:
            return validate(self.bundle, samples, mode=mode)
        weights = self.gathered_weights()
        if not self.is_world_process_zero():
            return None
        with self._staged("evaluated") as folder:
            folder.mkdir()
            self.save_bundle(folder, weights)
            whole_model = load(config_of_checkpoint(folder), for_inference=True)
            return validate(whole_model, samples, mode=mode, alone=True)

    def averaged(self) -> AbstractContextManager[None]:
        """The model is what ``train.ema`` evaluates and keeps, inside the block."""
        return nullcontext() if self._average is None else self._average.in_place()

    def _judge(self) -> None:
        """Keep the model if no evaluation was better; end the run if ``train.early_stopping`` says so."""
        best, ends, warnings = judge(self.state.log_history, self.state.global_step, self.bundle.config)
        for warning in warnings:
            logger.warning("%s", warning)
        if best is not None:
            self._keep(best)
        if ends:
            self.control.should_save = self.control.should_training_stop = True

    def _keep(self, best: Best) -> None:
        """Put the model in place of the best one so far."""
        weights = self.gathered_weights()
        if self.is_world_process_zero():
            with self._staged(FOLDER) as folder:
                folder.mkdir()
                best.write(folder)
                self.save_bundle(folder, weights)
                publish_folder(folder, self._run / FOLDER, replace=True)

    @cached_property
    def _validation_samples(self) -> list[Sample]:
        return validation_samples(self.bundle.config)[: self.bundle.config.train.eval_samples]

    def show(self, measured: Mapping[str, float], validation: Validation | None) -> dict[str, float]:
        """Log metrics and show pictures of predicted validation samples; returns what was logged, by name."""
        metrics = {LOGGED + name: value for name, value in measured.items() if value >= 0}
        self.log(dict(metrics))
        if validation is not None and self.is_world_process_zero():
            threshold = self.bundle.config.infer.picture_threshold
            self.trackers.pictures(self.state.global_step, validation_pictures(validation, threshold))
        return metrics

    def _require_whole_model(self) -> None:
        if self.is_sharded and self.bundle.config.train.preflight == "full":
            raise ConfigError(
                "the full preflight needs the whole model in a process; FSDP spreads it",
                "train.preflight",
                "set it to quick, and run qwendet validate CONFIG in one process before",
            )

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over :func:`parameter_groups`."""
        if self.optimizer is None:
            train = self.bundle.config.train
            groups = parameter_groups(
                model or self.bundle.detector,
                self.bundle.processor.family,
                train.group_learning_rates(),
                train.weight_decay,
            )
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Build the schedule of ``train.lr_scheduler``; its first step is not at rate 0."""
        if self.lr_scheduler is None:
            train, built = self.bundle.config.train, optimizer or self.optimizer
            assert built is not None
            self.lr_scheduler = schedule(built, train.lr_scheduler, train.warmup_ratio, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place and rename it when it is whole."""
        run = self._run
        with self.step_log.pausing(), self._staged(f"checkpoint-{self.state.global_step}") as folder:
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                record_training_state(folder, read_manifest(folder), self.accelerator.num_processes)
                publish_folder(folder, run / folder.name, replace=True)
                rotate(run, run / folder.name, self.bundle.config.train.save_total_limit)

    @contextmanager
    def _staged(self, name: str) -> Iterator[Path]:
        """A place to write a folder of the run in; nothing of it is left, nor of what a kill left."""
        staging = self._run / STAGING

        try:
            with saving(self._run):
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
                    staging.mkdir(parents=True)
                yield staging / name
        finally:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._run / STAGING)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model of a checkpoint, as :meth:`save_bundle` does."""
        assert output_dir is not None
        weights = self.gathered_weights()
        if self.args.should_save:
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.save_bundle(folder, weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write their states; under FSDP without the second copy of the weights that the Trainer adds."""
        if self._average is not None:
            self._average.save(Path(output_dir), writes=self.args.should_save)
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        accelerator, schedule_of_rates = self.accelerator, self.lr_scheduler
        assert schedule_of_rates is not None
        save_fsdp_optimizer(
            accelerator.state.fsdp_plugin, accelerator, self.optimizer, self.model, output_dir
        )
        if self.args.should_save:
            torch.save(schedule_of_rates.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return bool(self.is_fsdp_enabled)

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """The whole model on the first process, if it is spread over all; to be called on each of them."""
        return self.accelerator.get_state_dict(self.model_wrapped) if self.is_sharded else None

    def save_bundle(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the model as it is now into an existing, empty folder."""
        save_checkpoint(
            folder,
            self.accelerator.unwrap_model(self.model),
            self.bundle.processor,
            self.bundle.config,
            step=self.state.global_step,
            weights=weights,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load weights through the loader: verified, every key, nothing random."""
        stored = read_manifest(Path(resume_from_checkpoint))
        family = self.bundle.processor.family
        require_same_run(stored, self.bundle.config, family, resume_from_checkpoint)
        restore(self.bundle, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading_state(checkpoint, "optimizer or schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading_state(checkpoint, "random state"):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading_state(checkpoint, "gradient scaler"):
            super()._load_scaler(checkpoint)
