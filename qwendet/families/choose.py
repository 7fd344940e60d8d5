"""The one place that chooses a family."""

from __future__ import annotations

import json
import re
from pathlib import Path

from qwendet.config.schema import EMBEDDED_MODELS
from qwendet.errors import CheckpointError
from qwendet.families.family import Family, PixelLimits
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.families.qwen2_vl import QWEN2_VL
from qwendet.families.qwen3_5 import QWEN3_5
from qwendet.families.qwen3_vl import QWEN3_VL

FAMILIES = {family.model_type: family for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5)}
DEFAULT_MODEL = "Qwen/Qwen3-VL-4B-Instruct"
"""Of a new config."""
FIRST_FAMILY = QWEN2_5_VL.model_type
"""That of manifests from before there were others."""


def family_by_name(hub_id: str) -> Family | None:
    """The family of an embedded model, or whose name stands in a hub id, before anything is downloaded.

    Returns:
        None if there is none, or if the name is that of a mixture of experts.

    Example:
        >>> family_by_name("Qwen/Qwen3-VL-4B-Instruct").limits.unit
        32
        >>> family_by_name("Qwen/Qwen3-VL-30B-A3B-Instruct") is family_by_name("me/cells") is None
        True
    """
    if hub_id in EMBEDDED_MODELS:
        return FAMILIES[EMBEDDED_MODELS[hub_id]]
    if re.search(r"-A\d+B\b", hub_id):
        return None
    for family in FAMILIES.values():
        if any(name.lower() in hub_id.lower() for name in (family.name, *family.other_names)):
            return family
    return None


def family_in(folder: Path) -> Family:
    """The family that the ``config.json`` of a folder names.

    For one that is none transformers would build a model of default size, tens of gigabytes: it is refused.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"the model cannot be loaded: its config.json cannot be read ({error})"
        raise CheckpointError(what, str(folder), "take a directory that holds the whole model") from error
    settings = settings if isinstance(settings, dict) else {}
    family = family_of(settings.get("model_type"), str(folder))
    named = settings.get("architectures") or [family.model_class]
    if family.model_class not in named:
        raise CheckpointError(
            f"config.json contradicts itself: model_type {family.model_type}, architectures {named[0]}",
            str(folder),
            "copy config.json from the model's origin",
        )
    return family


def embedded_limits(family: Family) -> PixelLimits:
    """Pixel limits of a family's embedded models: images of 4 to 64 tokens."""
    unit = family.limits.unit
    return PixelLimits((2 * unit) ** 2, (8 * unit) ** 2, unit)


def family_of(model_type: str | None, where: str) -> Family:
    """The family of a model."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    what = "config.json names no model_type, which is not supported"
    if model_type:
        is_mixture = model_type.endswith("_moe")
        kind = "a mixture of experts, which is not supported" if is_mixture else "no family that is supported"
        what = f"model_type {model_type} is {kind}"
    names = ", ".join(f"{family.name} ({family.model_type})" for family in FAMILIES.values())
    raise CheckpointError(what, where, f"take a model of {names}")
