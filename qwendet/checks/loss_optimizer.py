"""Which parameters the optimizer holds, and at which rate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from torch import nn

from qwendet.checks.parts import parts
from qwendet.checks.result import Table, Verdict
from qwendet.checks.watched import Watched
from qwendet.errors import Problem

GROUPS_FIX = "see qwendet/parameter_groups.py and DetectionTrainer.create_optimizer"


def optimizer(watched: Watched) -> Verdict:
    """Learning rate 0 is frozen; every trainable parameter is in one group of the optimizer, at its rate."""
    watched.trainer.optimizer = None
    try:
        built = watched.trainer.create_optimizer()
    except ValueError as error:  # torch refuses a parameter that is given twice
        return Verdict(
            "", (Problem(f"the optimizer cannot be built: {error}", "parameter_groups", GROUPS_FIX),)
        )
    finally:
        watched.trainer.optimizer = None
    config, owned = watched.subject.bundle.config.train, parts(watched.detector)
    rates, held = config.group_learning_rates(), Counter[int]()
    held_at: dict[int, tuple[float, float]] = {}
    for group in built.param_groups:
        for parameter in group["params"]:
            held[id(parameter)] += 1
            held_at[id(parameter)] = (group["lr"], group["weight_decay"])
    problems = _stray_problems(held, owned)
    rows = []
    for part, parameters in owned.items():
        rate = rates[part]
        trained = [name for name, p in parameters.items() if p.requires_grad]
        size = sum(parameters[name].numel() for name in trained)
        rows.append((part, len(parameters), len(trained), size, rate))
        problems += _rate_problems(part, parameters, rate, held, held_at)
    table = Table("Parameters", ("part", "tensors", "trained", "numbers trained", "learning rate"), rows)
    total = sum(row[2] for row in rows)
    seen = (
        f"{total} trainable parameters, each in one group of {len(built.param_groups)}; the others are frozen"
    )
    return Verdict(seen, tuple(problems), (table,))


def _stray_problems(held: Counter[int], owned: Mapping[str, Mapping[str, nn.Parameter]]) -> list[Problem]:
    known = {id(p) for parameters in owned.values() for p in parameters.values()}
    strangers = [number for number in held if number not in known]
    if not strangers:
        return []
    what = f"the optimizer holds {len(strangers)} tensors that are no parameters of the model"
    return [Problem(what, "optimizer", GROUPS_FIX)]


def _rate_problems(
    part: str,
    parameters: Mapping[str, nn.Parameter],
    rate: float,
    held: Counter[int],
    held_at: Mapping[int, tuple[float, float]],
) -> list[Problem]:
    """At most one problem of each kind in a part; the first parameter is named."""
    key = f"train.{part}_learning_rate"
    kinds: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        times, is_trained = held[id(parameter)], parameter.requires_grad
        if is_trained and rate == 0:
            kinds.setdefault(f"trained, but {key} is 0: it was to be frozen", []).append(name)
        elif is_trained and times == 0:
            kinds.setdefault("trainable, but in no group of the optimizer: it would never change", []).append(
                name
            )
        elif times > 1:
            kinds.setdefault(f"in the optimizer {times} times: it would be updated as often", []).append(name)
        elif times and not is_trained:
            kinds.setdefault("frozen, but in the optimizer: weight decay would change it", []).append(name)
        elif times and not math.isclose(held_at[id(parameter)][0], rate):
            kinds.setdefault(f"trained at {held_at[id(parameter)][0]:g}, but {key} is {rate:g}", []).append(
                name
            )
    if rate > 0 and not any(p.requires_grad for p in parameters.values()):
        kinds[f"frozen, but {key} is {rate:g}"] = list(parameters)
    return [
        Problem(f"{part}: {len(names)} parameters are {what}, such as {names[0]}", names[0], GROUPS_FIX)
        for what, names in kinds.items()
    ]
