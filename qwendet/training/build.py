"""From a config to a trainer: model loaded, groups frozen, samples opened, callbacks in their order."""

from __future__ import annotations

from qwendet.config.schema import Config
from qwendet.encoding.dataset import training_samples
from qwendet.loader import Bundle, load
from qwendet.model.packing import require_isolation
from qwendet.training.arguments import require_launcher, training_arguments
from qwendet.training.callbacks import ProgressReport, StopOnSignal
from qwendet.training.param_groups import freeze_groups
from qwendet.training.trainer import DetectionTrainer


def create_trainer(config: Config) -> DetectionTrainer:
    """Build the trainer that ``qwendet train`` uses."""
    require_launcher(config)
    return trainer_of(load(config, for_inference=False))


def trainer_of(bundle: Bundle) -> DetectionTrainer:
    """Build the trainer of a training build: groups frozen, samples opened."""
    config = bundle.config
    if config.train.packing:
        require_isolation(bundle.detector)
    freeze_groups(bundle.detector, bundle.processor.family, config.train.group_learning_rates())
    samples = training_samples(config, bundle.encoder())
    return DetectionTrainer(bundle, samples, training_arguments(config), [ProgressReport(), StopOnSignal()])
