"""The parameter groups, each with a learning rate of its own; a rate of 0 freezes.

An adapter belongs to the group of the part that it is in; with one, only adapters and the head train.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qwendet.families.family import Family
from qwendet.loading.lora import has_adapter, is_adapter
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.precision import group_of


def parts(detector: Qwen25VLWithDetection) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of each part by name: vision, merger, language, head."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        found.setdefault(group_of(name, detector.family), {})[name] = parameter
    return found


def freeze_groups(detector: nn.Module, family: Family, learning_rates: dict[str, float]) -> None:
    """Turn off the gradients of groups whose learning rate is 0, and of the base beneath an adapter."""
    with_adapter = has_adapter(detector)
    for name, parameter in detector.named_parameters():
        is_frozen_base = with_adapter and not is_adapter(name) and group_of(name, family) != "head"
        if parameter.is_floating_point():  # what is kept in 4 bits has no gradient to turn off
            parameter.requires_grad_(learning_rates[group_of(name, family)] > 0 and not is_frozen_base)


def parameter_groups(
    detector: nn.Module, family: Family, learning_rates: dict[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups: a learning rate a group, weight decay on matrices only."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((group_of(name, family), parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rates[group],
            "weight_decay": weight_decay if is_matrix else 0.0,
            "name": group,
        }
        for (group, is_matrix), parameters in groups.items()
    ]
