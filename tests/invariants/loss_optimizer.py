"""Which parameters the optimizer holds, and at which rate."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from qwendet.checks.loss.optimizer import new_optimizer
from qwendet.checks.subject import Subject
from qwendet.errors import Problem
from qwendet.loading.lora import is_adapter
from qwendet.training.param_groups import parts

GROUPS_FIX = "see qwendet/training/param_groups.py and DetectionTrainer.create_optimizer"


def groups(subject: Subject) -> list[Problem]:
    """Learning rate 0 is frozen; every trainable parameter is in one group, at its rate and weight decay."""
    config, owned = subject.bundle.config, parts(subject.bundle.detector)
    rates, with_adapter = config.train.group_learning_rates(), config.model.lora is not None
    problems = [
        problem
        for part, parameters in owned.items()
        for problem in _frozen_problems(part, parameters, rates[part], with_adapter)
    ]
    if problems:
        return problems
    try:
        built = new_optimizer(subject)
    except ValueError as error:  # torch refuses a parameter that is given twice
        what = f"the optimizer cannot be built: {error}"
        return [Problem(what, "parameter_groups", GROUPS_FIX)]
    held_at: dict[int, list[tuple[float, float]]] = {}
    for group in built.param_groups:
        for parameter in group["params"]:
            held_at.setdefault(id(parameter), []).append((group["lr"], group["weight_decay"]))
    problems = _stray_problems(held_at, owned)
    for part, parameters in owned.items():
        problems += _group_problems(part, parameters, rates[part], config.train.weight_decay, held_at)
    return problems


def _frozen_problems(
    part: str, parameters: Mapping[str, nn.Parameter], rate: float, with_adapter: bool
) -> list[Problem]:
    """What is trained but was to be frozen, and the other way round."""
    key, kinds = f"train.{part}_learning_rate", dict[str, list[str]]()
    for name, parameter in parameters.items():
        is_wanted = rate > 0 and (part == "head" or not with_adapter or is_adapter(name))
        if parameter.requires_grad and not is_wanted:
            why = f"{key} is 0" if rate == 0 else "lie beneath an adapter"
            kinds.setdefault(f"trained, but {why}: it was to be frozen", []).append(name)
        elif is_wanted and not parameter.requires_grad and parameter.is_floating_point():
            kinds.setdefault(f"frozen, but {key} is {rate:g}", []).append(name)
    return _problems(part, kinds)


def _stray_problems(
    held: Mapping[int, object], owned: Mapping[str, Mapping[str, nn.Parameter]]
) -> list[Problem]:
    known = {id(p) for parameters in owned.values() for p in parameters.values()}
    strangers = [number for number in held if number not in known]
    if not strangers:
        return []
    what = f"the optimizer holds {len(strangers)} tensors that are no parameters of the model"
    return [Problem(what, "optimizer", GROUPS_FIX)]


def _group_problems(
    part: str,
    parameters: Mapping[str, nn.Parameter],
    rate: float,
    weight_decay: float,
    held_at: Mapping[int, list[tuple[float, float]]],
) -> list[Problem]:
    kinds: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        found, is_trained = held_at.get(id(parameter), []), parameter.requires_grad
        if is_trained and not found:
            what = "trainable, but in no group of the optimizer: they would never change"
        elif found and not is_trained:
            what = "frozen, but in the optimizer: weight decay would change them"
        elif found and not math.isclose(found[0][0], rate):
            what = f"trained at {found[0][0]:g}, but train.{part}_learning_rate is {rate:g}"
        elif found and found[0][1] != (decay := weight_decay if parameter.ndim >= 2 else 0.0):
            what = f"decayed by {found[0][1]:g}, not by {decay:g}: train.weight_decay is for matrices alone"
        else:
            continue
        kinds.setdefault(what, []).append(name)
    return _problems(part, kinds)


def _problems(part: str, kinds: Mapping[str, list[str]]) -> list[Problem]:
    """One problem of each kind in a part; the first parameter is named."""
    return [
        Problem(f"{part}: {len(names)} parameters are {what}, such as {names[0]}", names[0], GROUPS_FIX)
        for what, names in kinds.items()
    ]
