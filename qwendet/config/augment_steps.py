"""The steps of ``data.augment``: the settings of each. What they do is in :mod:`qwendet.data.augment`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from qwendet.config.section import Section, Share, one_or_many

Preset = Literal["off", "light", "strong", "aerial"]
BOUNDS: dict[str, tuple[float, float, tuple[float, float]]] = {
    "crop": (0.01, 1.0, (0.4, 1.0)),
    "scale": (0.1, 4.0, (0.7, 1.4)),
    "color": (0.0, 3.0, (0.8, 1.2)),
    "blur": (0.0, 20.0, (0.0, 1.5)),
    "jpeg": (1.0, 95.0, (40.0, 95.0)),
    "mosaic": (0.1, 0.9, (0.3, 0.7)),
}
"""Of steps with a range: its least and its largest value, and its default."""


class AugmentStep(Section):
    """A step of ``data.augment``; docs/augmentation.md says what each does."""

    name: Literal[
        "horizontal_flip", "vertical_flip", "quarter_turn", "crop", "scale", "color", "blur", "jpeg", "mosaic"
    ]
    """What is done."""
    probability: Share = 0.5
    """Share of the images that it is done to."""
    range: Annotated[tuple[float, float], BeforeValidator(one_or_many)] | None = None
    """What is drawn between, such as the share of the image that a crop keeps; ``null`` is the step's own."""
    min_visible: Share = 0.3
    """Share of a box's area that a cut must leave; else the box is dropped."""

    def limits(self) -> tuple[float, float]:
        """The range, or the step's own."""
        return self.range or BOUNDS[self.name][2]

    @model_validator(mode="after")
    def _check(self) -> AugmentStep:
        if self.range is None:
            return self
        if self.name not in BOUNDS:
            raise ValueError(f"{self.name} takes no range; remove it")
        least, most, _ = BOUNDS[self.name]
        low, high = self.range
        if not least <= low <= high <= most:
            raise ValueError(
                f"the range of {self.name} is [{low:g}, {high:g}]; give two numbers from {least:g} to"
                f" {most:g}, the lower one first"
            )
        return self
