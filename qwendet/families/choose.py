"""The one place that chooses a family."""

from __future__ import annotations

from qwendet.families.family import Family, unknown_family
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.families.qwen2_vl import QWEN2_VL
from qwendet.families.qwen3_5 import QWEN3_5
from qwendet.families.qwen3_vl import QWEN3_VL

FAMILIES = {family.model_type: family for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5)}


def family_by_name(hub_id: str) -> Family:
    """The family whose name stands in a hub id, before anything is downloaded; Qwen2.5-VL if there is none.

    Example:
        >>> family_by_name("Qwen/Qwen3-VL-4B-Instruct").limits.unit
        32
    """
    for family in FAMILIES.values():
        if any(name.lower() in hub_id.lower() for name in (family.name, *family.other_names)):
            return family
    return QWEN2_5_VL


def family_of(model_type: str | None, where: str) -> Family:
    """The family of a model.

    Args:
        model_type: of its ``config.json``.
        where: the file or hub id, for the message.

    Raises:
        CheckpointError: if it belongs to none; with the list of those that work.
    """
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise unknown_family(model_type, where, FAMILIES)
    return family
