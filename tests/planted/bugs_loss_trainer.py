"""Bugs of the trainer: counts of the step, parameter groups, what is frozen, what stops a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qwendet.encoding.collate import Batch
from qwendet.families.family import Family
from qwendet.model.losses import step_counts
from qwendet.training import build as build_trainer
from qwendet.training import trainer as training
from qwendet.training.trainer import DetectionTrainer
from tests.planted.bug import Bug
from tests.planted.in_code import Plant, replacing


def swapped_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = training.parameter_groups

    def groups(detector: Any, family: Family, rates: dict[str, float], decay: float) -> Any:
        swapped = {"head": rates["language"], "language": rates["head"]}
        return sound(detector, family, rates | swapped, decay)

    monkeypatch.setattr(training, "parameter_groups", groups)


def without_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = training.parameter_groups
    monkeypatch.setattr(training, "parameter_groups", lambda *given: sound(*given[:-1], 0.0))


def count_of_the_last(
    self: DetectionTrainer, epoch_iterator: Any, num_batches: int, device: torch.device
) -> tuple[list[Batch], Tensor]:
    batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
    return batches, step_counts(batches[-1:]).to(device)


def counts_of_all_tokens(batches: Any) -> Tensor:
    counts = step_counts(batches)
    counts[1] = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return counts


def groups(change: Callable[[list[dict[str, Any]], Any], list[dict[str, Any]]]) -> Plant:
    sound = training.parameter_groups

    def spoilt(detector: Any, *given: Any) -> list[dict[str, Any]]:
        return change(sound(detector, *given), detector)

    return replacing(training, "parameter_groups", spoilt)


def one_group_twice(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [*found, {**found[0], "params": found[0]["params"][:1]}]


def without_biases(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [group for group in found if group["params"][0].ndim >= 2]


def everything_at_one_rate(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [group | {"lr": 1e-5} for group in found]


def frozen_held_too(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    frozen = [parameter for parameter in detector.parameters() if not parameter.requires_grad]
    return [*found, {**found[0], "params": frozen}]


def copies(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [group | {"params": copy.deepcopy(group["params"])} for group in found]


def in_bfloat16(part: str) -> Plant:
    """What is trained of a part is bfloat16."""

    def cast(group: dict[str, Any]) -> dict[str, Any]:
        narrow = [parameter.detach().bfloat16().requires_grad_() for parameter in group["params"]]
        return group | {"params": narrow} if group["name"] == part else group

    return groups(lambda found, detector: [cast(group) for group in found])


def a_millionth_of_the_rate(found: list[dict[str, Any]], detector: Any) -> list[dict[str, Any]]:
    return [group | {"lr": 1e-6 * group["lr"]} for group in found]


def never_finite(self: DetectionTrainer, terms: dict[str, float], norms: Any) -> None:
    self.step_log.sources = []


def only_the_loss_is_looked_at(self: DetectionTrainer, terms: dict[str, float], norms: Any) -> None:
    sound_require_finite(self, terms, {})


sound_require_finite = DetectionTrainer._require_finite


NO_VISION = ("train.vision_learning_rate=0",)


TRAINER_BUGS: list[Bug[pytest.MonkeyPatch]] = [
    Bug(
        "rates of head and language swapped",
        "test.loss.optimizer",
        ("trained at 0.0005",),
        swapped_rates,
        ("train.head_learning_rate=0.0005",),
    ),
    Bug(
        "weight decay lost",
        "test.loss.optimizer",
        ("decayed by 0, not by 0.1",),
        without_decay,
        ("train.weight_decay=0.1",),
    ),
    Bug(
        "counts of the last micro-batch only",
        "test.loss.accumulation",
        ("of 4 × 1 it is",),
        replacing(DetectionTrainer, "get_batch_samples", count_of_the_last),
    ),
    Bug(
        "loss divided by the accumulation steps once more",
        "test.loss.accumulation",
        ("total of 1 × 4",),
        replacing(DetectionTrainer, "loss_is_scaled_for_ga", False),
    ),
    Bug(
        "mean over all tokens instead of the answers'",
        "test.loss.counts",
        ("the means divide by",),
        replacing(training, "step_counts", counts_of_all_tokens),
    ),
    Bug(
        "NaN never looked for",
        "test.loss.nan",
        ("a loss that is NaN went unnoticed", "the weight is nan"),
        replacing(DetectionTrainer, "_require_finite", never_finite),
    ),
    Bug(
        "gradients never looked at",
        "test.loss.nan",
        ("a finite loss whose gradient is infinite went unnoticed",),
        replacing(DetectionTrainer, "_require_finite", only_the_loss_is_looked_at),
    ),
    Bug(
        "a frozen part is trained",
        "test.loss.optimizer",
        ("train.vision_learning_rate is 0", "it was to be frozen"),
        replacing(build_trainer, "freeze_groups", lambda *given: None),
        NO_VISION,
    ),
    Bug(
        "everything is frozen",
        "test.loss.optimizer",
        ("language", "frozen, but train.language_learning_rate is 0.001"),
        replacing(build_trainer, "freeze_groups", lambda detector, *given: detector.requires_grad_(False)),
    ),
    Bug(
        "a parameter in two groups",
        "test.loss.optimizer",
        ("more than one parameter group",),
        groups(one_group_twice),
    ),
    Bug(
        "parameters in no group",
        "test.loss.optimizer",
        ("in no group of the optimizer",),
        groups(without_biases),
    ),
    Bug(
        "one learning rate for all groups",
        "test.loss.optimizer",
        ("trained at 1e-05", "train.head_learning_rate is 0.001"),
        groups(everything_at_one_rate),
    ),
    Bug(
        "frozen parameters in the optimizer",
        "test.loss.optimizer",
        ("frozen, but in the optimizer",),
        groups(frozen_held_too),
        NO_VISION,
    ),
    Bug(
        "the optimizer holds copies",
        "test.loss.optimizer",
        ("no parameters of the model",),
        groups(copies),
    ),
    Bug(
        "trained weights in bfloat16",
        "loss.optimizer.moves",
        ("of the language weights in bfloat16", "train.language_learning_rate"),
        in_bfloat16("language"),
        ("train.language_learning_rate=1e-5",),
    ),
    Bug(
        "the head in the model's type",
        "loss.optimizer.moves",
        ("of the head weights in bfloat16", "rounded away"),
        in_bfloat16("head"),
        ("train.head_learning_rate=1e-5",),
    ),
    Bug(
        "rates of a millionth",
        "loss.optimizer.moves",
        ("of the language weights in float32",),
        groups(a_millionth_of_the_rate),
        ("train.language_learning_rate=1e-5",),
    ),
    Bug(
        "nothing is learned: the optimizer holds copies",
        "loss.overfit",
        ("none has changed",),
        groups(copies),
    ),
]
