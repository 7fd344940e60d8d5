"""Training: Hugging Face's Trainer with our loss, parameter groups, and checkpoints.

Read in transformers 5.23: ``get_batch_samples`` sees all micro-batches of an optimizer step, so the
counts that the means divide by are gathered there, over all ranks; ``compute_loss`` returns this
micro-batch's share of the step's loss, times the number of processes because DDP averages.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_callback import PrinterCallback

from qwendet.callbacks import ProgressReport, StopOnSignal
from qwendet.config import Config
from qwendet.data.collate import Batch, require_left_padding
from qwendet.data.dataset import TrainingSamples, usable_samples
from qwendet.data.order import EpochOrder
from qwendet.errors import CheckpointError, ConfigError, EnvironmentLacksError, QwendetError
from qwendet.files import publish_folder
from qwendet.loader import Bundle, config_of_checkpoint, load, restore
from qwendet.model.checkpoint import read_manifest, save_checkpoint
from qwendet.model.losses import Losses, LossManager, step_counts
from qwendet.model.matching import Targets
from qwendet.model.packing import require_isolation
from qwendet.parameter_groups import freeze_groups, parameter_groups
from qwendet.progress import Tracker, silent
from qwendet.resume import record_training_state, require_same_run, rotate, saving
from qwendet.schedule import schedule

logger = logging.getLogger("qwendet")

STAGING = ".writing"


class TrainingDivergedError(QwendetError):
    """A loss or gradient is not finite; nothing was updated with it."""

    exit_code = 1


class DetectionTrainer(Trainer):
    """Hugging Face's Trainer for a :class:`~qwendet.loader.Bundle`.

    Args:
        bundle: the model and what belongs to it.
        train_dataset: encoded samples.
        args: the Trainer's own arguments.
        callbacks: progress and signals.
    """

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
        self._step_terms: dict[str, Tensor] = {}
        self._logged_terms: dict[str, float] = {}
        self._logged_steps = 0
        self._first_step_seen = False
        self._step_sources: list[str] = []
        self._waited = 0.0
        self._logged_at = time.perf_counter()
        self._step_learning_rates: dict[str, float] = {}
        super().__init__(
            model=bundle.detector,
            args=args,
            data_collator=bundle.collator(packing=bundle.config.train.packing),
            train_dataset=train_dataset,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # prints every log on stdout

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; afterwards the model computes as a loaded one would, without ``train.autocast``."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    # Data and loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        samples: Any = self.train_dataset
        return EpochOrder(samples, self.args.train_batch_size, self.args.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Take an optimizer step's micro-batches and count its tokens and boxes over all ranks."""
        started = time.perf_counter()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._waited += time.perf_counter() - started
        if not self._first_step_seen:  # later ones need no look at the device
            for batch in batches:
                require_left_padding(batch)
            self._first_step_seen = True
        counts = step_counts(batches).to(device)
        gathered: Tensor = self.accelerator.gather(counts[None])
        return batches, gathered.sum(0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's loss, times the number of processes."""
        assert isinstance(num_items_in_batch, Tensor)
        output = model(inputs)
        targets = Targets(inputs["target_boxes_cxcywh"], inputs["target_label_ids"], inputs["num_boxes"])
        losses = self.loss_manager(output.tokens, output.head, targets, num_items_in_batch)
        self._note(losses, inputs["where"])
        total = losses.total * self.accelerator.num_processes
        return (total, output) if return_outputs else total

    # What is logged is what was back-propagated

    def _note(self, losses: Losses, sources: list[str]) -> None:
        for name, value in (losses.terms | {"total": losses.total}).items():
            earlier = self._step_terms.get(name)
            self._step_terms[name] = value.detach() if earlier is None else earlier + value.detach()
        self._step_sources += sources

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip; then, before the optimizer's step, refuse anything that is not finite."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        terms = self._end_of_step()
        self._require_finite(terms, norm)
        return norm

    def _end_of_step(self) -> dict[str, float]:
        """The step's terms, added up over ranks and kept for the next log, with its learning rates."""
        optimizer: Any = self.optimizer
        self._step_learning_rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        names = sorted(self._step_terms)
        values = torch.stack([self._step_terms[name].float() for name in names])
        summed = self.accelerator.reduce(values, reduction="sum").tolist()
        terms = dict(zip(names, summed, strict=True))
        for name, value in terms.items():
            self._logged_terms[name] = self._logged_terms.get(name, 0.0) + value
        self._logged_steps += 1
        self._step_terms = {}
        return terms

    def _require_finite(self, terms: dict[str, float], norm: Any) -> None:
        broken = [name for name, value in terms.items() if not torch.isfinite(torch.tensor(value))]
        if not broken and norm is not None and not torch.isfinite(torch.as_tensor(float(norm))):
            broken = ["the gradient norm"]
        sources, self._step_sources = self._step_sources, []
        if broken:
            raise TrainingDivergedError(
                f"step {self.state.global_step + 1}: not finite: {', '.join(broken)}",
                f"samples {', '.join(sources[:8])}{' …' if len(sources) > 8 else ''}",
                "look at these samples, lower train.learning_rate, or set train.autocast to none",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every loss term and the learning rate of each group."""
        if self._logged_steps and "loss" in logs:
            for name, value in self._logged_terms.items():
                logs[f"loss/{name}"] = value / self._logged_steps
            self._logged_terms, self._logged_steps = {}, 0
            for group, rate in self._step_learning_rates.items():
                logs[f"learning_rate/{group}"] = rate
            now = time.perf_counter()
            logs["time/waiting_for_data"] = self._waited / (now - self._logged_at)
            self._waited, self._logged_at = 0.0, now
        super().log(logs, start_time)

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over :func:`parameter_groups`."""
        if self.optimizer is None:
            train = self.bundle.config.train
            groups = parameter_groups(
                model or self.bundle.detector, train.group_learning_rates(), train.weight_decay
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
        folder = run / STAGING / f"checkpoint-{self.state.global_step}"
        try:
            with saving(run):
                if self.args.should_save:
                    shutil.rmtree(run / STAGING, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    record_training_state(folder, read_manifest(folder), self.accelerator.num_processes)
                    publish_folder(folder, run / folder.name, replace=True)
                    rotate(run, run / folder.name, self.bundle.config.train.save_total_limit)
        finally:
            if self.args.should_save:
                shutil.rmtree(run / STAGING, ignore_errors=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._run / STAGING)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        assert output_dir is not None
        if self.args.should_save:
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.save_bundle(folder, state_dict if self.is_sharded else None)

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return bool(self.is_fsdp_enabled) or is_deepspeed_zero3_enabled()

    def gathered_weights(self) -> dict[str, Tensor] | None:
        """The whole model on the first process, if it is spread over all; to be called on each of them."""
        return self.accelerator.get_state_dict(self.model_wrapped) if self.is_sharded else None

    def save_bundle(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the model as it is now into an existing, empty folder.

        Args:
            folder: where to write.
            weights: from :meth:`gathered_weights`, of a model that is spread over processes.
        """
        save_checkpoint(
            folder,
            self.accelerator.unwrap_model(self.model),
            self.bundle.processor,
            self.bundle.config,
            attn_implementation=self.bundle.config.model.attn_implementation,
            step=self.state.global_step,
            weights=weights,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load weights through the loader: verified, every key, nothing random."""
        stored = config_of_checkpoint(Path(resume_from_checkpoint))
        require_same_run(stored, self.bundle.config, resume_from_checkpoint)
        restore(self.bundle, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading_state(checkpoint, "optimizer or schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading_state(checkpoint, "random state"):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _reading_state(checkpoint, "gradient scaler"):
            super()._load_scaler(checkpoint)


@contextmanager
def _reading_state(checkpoint: str | None, what: str) -> Iterator[None]:
    """Say which part of the training state cannot be used; nothing in it is ever unpickled."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(
            f"the {what} cannot be loaded: {str(error).splitlines()[0]}",
            checkpoint or "",
            "resume from an older checkpoint, or start another run with this one as model.path",
        ) from error


def create_trainer(config: Config, *, tracker: Tracker = silent) -> DetectionTrainer:
    """Build the trainer that ``qwendet train`` uses.

    Args:
        config: the config.
        tracker: shows progress.

    Returns:
        A trainer; its ``bundle`` is the model, its ``train()`` trains.

    Raises:
        QwendetError: for data, weights or settings that cannot be used.
    """
    return trainer_of(load(config, for_inference=False), tracker=tracker)


def trainer_of(bundle: Bundle, *, tracker: Tracker = silent) -> DetectionTrainer:
    """Build the trainer of a training build: groups frozen, samples opened.

    Raises:
        QwendetError: for data or settings that cannot be used.
    """
    config = bundle.config
    if config.train.packing:
        require_isolation(bundle.detector)
    freeze_groups(bundle.detector, config.train.group_learning_rates())
    dataset = TrainingSamples(config, bundle.encoder())
    if config.data.on_bad_sample == "skip":
        dataset.indices, problems = usable_samples(dataset.samples, bundle.labels)
        logger.warning("data.on_bad_sample is skip: %d samples left out", len(problems))
        for problem in problems:
            logger.warning("left out: %s: %s", problem.where, problem.what)
    if len(dataset) == 0:
        raise ConfigError("no usable training sample is left", "data.train", "mend the samples listed above")
    return DetectionTrainer(
        bundle, dataset, training_arguments(config), [ProgressReport(tracker), StopOnSignal()]
    )


def _require_available(config: Config) -> None:
    if config.train.autocast == "fp16" and config.model.device == "cpu":  # accelerate would leave it out
        raise EnvironmentLacksError(
            "train.autocast fp16 needs a GPU", "train.autocast", "set it to none or bf16"
        )
    if config.train.optimizer == "adamw_bnb_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise EnvironmentLacksError(
            "adamw_bnb_8bit needs the package bitsandbytes", "train.optimizer", "pip install bitsandbytes"
        )


def training_arguments(config: Config) -> TrainingArguments:
    """Our settings in the Trainer's words.

    Raises:
        EnvironmentLacksError: for an optimizer or precision that is not to be had here.
    """
    train = config.train
    _require_available(config)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(train.output_dir) / "tensorboard")
    return TrainingArguments(
        output_dir=train.output_dir,
        max_steps=train.max_steps or -1,
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=max(train.group_learning_rates().values()),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm or float("inf"),
        lr_scheduler_type=train.lr_scheduler,
        optim=train.optimizer,
        bf16=train.autocast == "bf16",
        fp16=train.autocast == "fp16",
        seed=train.seed,
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=train.save_steps,
        save_total_limit=train.save_total_limit,
        report_to=["tensorboard"],
        use_cpu=config.model.device == "cpu",
        dataloader_num_workers=config.data.num_workers,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
