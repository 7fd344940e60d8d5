"""What the sections of a config are made of: strict, read-only groups of settings, and types of numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LearningRate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def one_or_many(value: Any) -> Any:
    """A single name may be written without a list; and the manifest's JSON has no tuples."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def flat(record: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(record, dict):
        return {prefix: record}
    found: dict[str, Any] = {}
    for key, value in record.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


class Section(BaseModel):
    """A group of settings: unknown keys refused, no coercion, read-only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
