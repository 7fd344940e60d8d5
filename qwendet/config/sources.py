"""Where training samples are: one path, or a mixture of several, each with a weight."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from qwendet.config.section import Section


class Source(Section):
    """Samples of a mixture."""

    path: str
    """As ``data.train``."""
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    """How often an epoch takes each sample; of 0.5 half of them, and the next epoch the other half."""


def _one_or_many(value: Any) -> str:
    return "one" if isinstance(value, str) else "many"


def _named(value: Any) -> Any:
    """A list may name paths alone; and the manifest's JSON has no tuples."""
    if not isinstance(value, list | tuple):
        return value
    if not value:
        raise ValueError("data.train is an empty list; name a path, or leave it out")
    return tuple({"path": own} if isinstance(own, str) else own for own in value)


TrainSources = Annotated[
    Annotated[str, Tag("one")] | Annotated[tuple[Source, ...], Tag("many")],
    Discriminator(_one_or_many),
    BeforeValidator(_named),
]
