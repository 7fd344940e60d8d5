"""Which parameters the optimizer holds, and at which rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import nn

from qwendet.checks.loss.parts import parts
from qwendet.checks.loss.watched import Watched
from qwendet.checks.result import Table, Verdict
from qwendet.errors import Problem
from qwendet.loading.lora import is_adapter
from qwendet.model.detector import Qwen25VLWithDetection

GROUPS_FIX = "see qwendet/training/param_groups.py and DetectionTrainer.create_optimizer"
ADAPTER_FIX = (
    "name a part, such as language, or linear layers of every kind of attention, such as in_proj_qkv"
)


def optimizer(watched: Watched) -> Verdict:
    """Learning rate 0 is frozen; every trainable parameter is in one group, at its rate and weight decay."""
    config, owned = watched.subject.bundle.config, parts(watched.detector)
    rates, with_adapter = config.train.group_learning_rates(), config.model.lora is not None
    problems = [
        problem
        for part, parameters in owned.items()
        for problem in _frozen_problems(part, parameters, rates[part], with_adapter)
    ]
    problems += _unreached(watched.detector) if with_adapter else []
    if problems:
        return Verdict("", tuple(problems))
    watched.trainer.optimizer = None
    try:
        built = watched.trainer.create_optimizer()
    except ValueError as error:  # torch refuses a parameter that is given twice
        return Verdict(
            "", (Problem(f"the optimizer cannot be built: {error}", "parameter_groups", GROUPS_FIX),)
        )
    finally:
        watched.trainer.optimizer = None
    held_at: dict[int, list[tuple[float, float]]] = {}
    for group in built.param_groups:
        for parameter in group["params"]:
            held_at.setdefault(id(parameter), []).append((group["lr"], group["weight_decay"]))
    problems = _stray_problems(held_at, owned)
    rows = []
    for part, parameters in owned.items():
        problems += _group_problems(part, parameters, rates[part], config.train.weight_decay, held_at)
        trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
        size = sum(parameter.numel() for parameter in trained)
        rows.append((part, len(parameters), len(trained), size, f"{rates[part]:g}"))
    table = Table("Parameters", ("part", "tensors", "trained", "numbers trained", "learning rate"), rows)
    total = sum(row[2] for row in rows)
    seen = (
        f"{total} trainable parameters, each in one group of {len(built.param_groups)}; the others are frozen"
    )
    return Verdict(seen, tuple(problems), (table,))


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


def _unreached(detector: Qwen25VLWithDetection) -> Iterator[Problem]:
    """Layers without an adapter in their attention, recurrent or not, or MLP, where others have one."""
    model = detector.vlm.model
    for name, layers in (("decoder layers", model.language_model.layers), ("blocks", model.visual.blocks)):
        reached = [
            {key.startswith("mlp.") for key, _ in layer.named_parameters() if is_adapter(key)}
            for layer in layers
        ]
        for is_mlp in set[bool]().union(*reached):
            lacking = [index for index, own in enumerate(reached) if is_mlp not in own]
            if lacking:
                part = "MLP" if is_mlp else "attention"
                what = f"{len(lacking)} of {len(layers)} {name} have no adapter in their {part}"
                yield Problem(what, f"model.lora.targets: layer {lacking[0]}", ADAPTER_FIX)


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
