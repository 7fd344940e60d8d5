"""What is trained and at which rate, whether an adapter is in every layer, how many weights a step moves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from qwendet.checks.runner import Table, Verdict
from qwendet.checks.subject import Subject
from qwendet.errors import Problem
from qwendet.loading.checkpoint import dtype_name
from qwendet.loading.lora import is_adapter
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.spread import of_this_process
from qwendet.training.param_groups import parts

ADAPTER_FIX = (
    "name a part, such as language, or linear layers of every kind of attention, such as in_proj_qkv"
)
LEAST = 0.9
"""Share of a part's weights that a step must be able to move."""
LOOKED_AT = 1 << 16
"""Weights of a parameter that are looked at, evenly spread over it."""


def optimizer(subject: Subject) -> Verdict:
    """An adapter that is in the attention (or MLP) of some layers is in that of all; the rest is a table."""
    config, rows = subject.bundle.config, []
    rates = config.train.group_learning_rates()
    for part, parameters in parts(subject.bundle.detector).items():
        trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
        size = sum(parameter.numel() for parameter in trained)
        rows.append((part, len(parameters), len(trained), size, f"{rates[part]:g}"))
    table = Table("Parameters", ("part", "tensors", "trained", "trainable parameters", "learning rate"), rows)
    problems = [] if config.model.lora is None else [*_unreached(subject.bundle.detector)]
    seen = f"{sum(row[2] for row in rows)} tensors are trained, the others are frozen"
    return Verdict(seen, tuple(problems), (table,))


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


def moves(subject: Subject) -> Verdict:
    """A step at its rate moves nine of ten weights of each part: a smaller one would be rounded away."""
    counts: dict[tuple[str, float, str], list[float]] = {}
    for group in new_optimizer(subject).param_groups:
        for parameter in group["params"]:
            key = (group["name"], float(group["lr"]), dtype_name(parameter.dtype))
            found = counts.setdefault(key, [0.0, 0.0])
            weights = _some(parameter)
            found[0] += moved_share(weights, key[1], kept=_is_compensated(group)) * parameter.numel()
            found[1] += parameter.numel()
    shares = {key: moved / total for key, (moved, total) in counts.items()}
    problems = [
        Problem(
            f"a step at {rate:g} can move {share:.1%} of the {part} weights in {dtype}: in the others it is"
            " rounded away, and nothing adds up",
            f"train.{part}_learning_rate",
            "raise it" if dtype == "float32" else "set train.weights to float32, or raise it",
        )
        for (part, rate, dtype), share in shares.items()
        if not share >= LEAST
    ]
    rows = [(part, f"{rate:g}", dtype, f"{share:.1%}") for (part, rate, dtype), share in shares.items()]
    table = Table("Weights that a step can move", ("part", "learning rate", "type", "share"), rows)
    least = min(shares.values(), default=1.0)
    return Verdict(
        f"a step can move at least {least:.1%} of the weights of each part", tuple(problems), (table,)
    )


def new_optimizer(subject: Subject) -> Optimizer:
    """The optimizer that the trainer would build; it keeps none."""
    subject.trainer.optimizer = None
    try:
        return subject.trainer.create_optimizer()
    finally:
        subject.trainer.optimizer = None


def moved_share(weights: Tensor, rate: float, *, kept: bool = False) -> float:
    """Share of weights that an optimizer's step moves; 1 of none.

    Adam's first step is the learning rate for every weight, up or down (Kingma & Ba 2015, §2.1), and later
    ones are about as large. A weight of p binary digits moves if that is more than half of its last one.

    Args:
        weights: of any shape, in the type that they are kept in.
        rate: the learning rate.
        kept: what is rounded away is kept in a number of the same type (Kahan summation) and added later: the
            step need only be more than half of the last digit of that number, half a last digit itself.

    Example:
        >>> weights = torch.tensor([0.02, 0.001, 0.0])
        >>> moved_share(weights.bfloat16(), 1e-5), moved_share(weights, 1e-5)
        (0.6666666865348816, 1.0)
    """
    if not weights.numel():
        return 1.0
    if kept:
        rate /= torch.finfo(weights.dtype).eps / 4
    exact = weights.double()
    moved = [(exact + step).to(weights.dtype) != weights for step in (rate, -rate)]
    return float(torch.stack(moved).float().mean())


def _some(parameter: Tensor) -> Tensor:
    """Weights of a parameter, or of the part of it that is on this process."""
    flat = of_this_process(parameter.detach()).flatten()
    return flat[:: len(flat) // LOOKED_AT + 1]


def _is_compensated(group: dict[str, Any]) -> bool:
    """Whether the optimizer keeps what it rounds away; torch-optimi does so in half precision."""
    is_half = any(p.dtype in (torch.bfloat16, torch.float16) for p in group["params"])
    return is_half and group.get("kahan_sum", False) is not False
