"""In which type each weight is kept, and in which the model computes.

    trained weights     float32 (``train.weights``); adapters and the head always
    frozen weights      ``model.dtype``
    products            ``train.autocast``: bf16 over weights of bfloat16 or float32

A step moves a weight by about the learning rate. bfloat16 has 8 binary digits, so that most of such steps
would be rounded away and nothing of them would add up.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qwendet.config.schema import Config
from qwendet.families.family import Family

AUTOCAST = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type that ``train.autocast``, resolved, multiplies in."""
GROUPS = ("vision", "merger", "language", "head")


def group_of(parameter_name: str, family: Family) -> str:
    """Parameter group of a detector's parameter: one of :data:`GROUPS`.

    Example:
        >>> from qwendet.families.choose import FAMILIES
        >>> {group_of("vlm.model.visual.merger.mlp.0.weight", family) for family in FAMILIES.values()}
        {'merger'}
    """
    if parameter_name.startswith("head."):
        return "head"
    return family.part_of(parameter_name.removeprefix("vlm."))


def trained_in_float32(config: Config) -> frozenset[str]:
    """Groups of the base model whose weights training keeps in float32, whatever ``model.dtype`` is."""
    if config.model.lora is not None or config.train.weights != "float32":
        return frozenset()
    rates = config.train.group_learning_rates()
    return frozenset(group for group in GROUPS[:-1] if rates[group] > 0)


@contextmanager
def loading_in_float32(model_class: Any, family: Family, groups: Collection[str]) -> Iterator[None]:
    """Have transformers load a class's weights of some groups in float32 and the others in the given type.

    Each weight is read in its own type: none is rounded on the way, and no second copy is made.
    """
    merger = "|".join(map(re.escape, family.merger))
    within = {
        "vision": rf"^(?!{merger})model\.visual\.",
        "merger": f"^({merger})",
        "language": r"^(?!model\.visual\.)",
    }
    usual = model_class._keep_in_fp32_modules_strict
    model_class._keep_in_fp32_modules_strict = [within[group] for group in groups]
    try:
        yield
    finally:
        model_class._keep_in_fp32_modules_strict = usual


def float32_or_wider(dtype: torch.dtype) -> torch.dtype:
    """float32 in place of half precision.

    Example:
        >>> float32_or_wider(torch.bfloat16), float32_or_wider(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)
