"""``Family``: every question that Qwen's vision families answer differently.

Sizes (patch, merge, layers, token ids) are not here: they are read from the model's config and its processor.
Nothing here imports torch or transformers, so ``init`` and ``validate-config`` may ask, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qwendet.config.schema import Frame

AnswerForm = Literal["json", "box_tokens"]
"""JSON objects with ``bbox_2d`` and ``label``, or Qwen2-VL's box tokens."""

THOUSANDTHS = 1000
FULL_ATTENTION = "full_attention"
"""A decoder layer that is not recurrent, as ``layer_types`` of transformers calls it."""


@dataclass(frozen=True)
class PixelLimits:
    """Published limits of the resized image.

    Attributes:
        min_pixels: smaller images are enlarged to at least this many pixels.
        max_pixels: larger images are shrunk to at most this many pixels.
        unit: both sides are multiples of it: patch size times merge size.
    """

    min_pixels: int
    max_pixels: int
    unit: int

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the model's image: multiples of ``unit``, the area between the limits.

        Example:
            >>> PixelLimits(3136, 12845056, 28).resized((640, 480))
            (644, 476)
        """
        width, height = size
        columns, rows = round(width / self.unit), round(height / self.unit)
        if columns * rows * self.unit**2 > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            columns, rows = (max(1, math.floor(side / shrink / self.unit)) for side in size)
        elif columns * rows * self.unit**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            columns, rows = (math.ceil(side * grow / self.unit) for side in size)
        return columns * self.unit, rows * self.unit


@dataclass(frozen=True, eq=False)
class Family:
    r"""One family.

    Attributes:
        model_type: of ``config.json``.
        name: as people write it, in hub ids too.
        other_names: of later releases of the same kind.
        image_processor_class: of transformers, as ``preprocessor_config.json`` names it.
        resizer_class: of transformers: the same image processor, resizing by PIL.
        limits: published ones; what a model's own processor says goes first.
        image_mean: of red, green and blue, in the unit interval; pixels are normalised by it.
        request: the question that its publication asks for boxes; ``{labels}`` becomes the label set.
        system_prompt: text of the system turn that the published template writes; empty for no such turn.
        template_settings: given to the chat template, in training and at inference.
        answer_prefix: what the template then puts between ``assistant\\n`` and the answer.
        merger: beginnings of the names of the modules between vision tower and language model; the rest of
            ``model.visual`` is the tower.
        lora: pattern of the modules that an adapter trains, by part: ``language``, ``vision``, ``merger``.
        packing_refusal: why samples cannot share a row; empty if they can.
        ignored_weights: published weights that transformers leaves out, so that an export lacks them.
        licences: of published sizes, by their model cards, where it is not Apache-2.0.
    """

    model_type: str
    name: str
    model_class: str
    processor_class: str
    image_processor_class: str
    resizer_class: str
    frame: Frame
    answer_form: AnswerForm
    limits: PixelLimits
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    request: str
    system_prompt: str
    answer_prefix: str
    merger: tuple[str, ...]
    lora: Mapping[str, str]
    other_names: tuple[str, ...] = ()
    template_settings: Mapping[str, bool] = field(default_factory=dict)
    packing_refusal: str = ""
    ignored_weights: tuple[str, ...] = ()
    licences: Mapping[str, str] = field(default_factory=dict)

    def in_frame(self, frame: Frame | None) -> Family:
        """The family with answers in another frame than its own; ``None`` is its own."""
        return self if frame in (None, self.frame) else replace(self, frame=frame)

    def answer_size(self, model_size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the frame of an answer's coordinates, by the resized image's size in pixels.

        A box in pixels of the displayed image is written times this over the displayed size; each coordinate
        lies between 0 and this, both included.
        """
        return model_size if self.frame == "pixels" else (THOUSANDTHS, THOUSANDTHS)

    def part_of(self, name: str) -> str:
        """``vision``, ``merger`` or ``language``: the part that a published parameter is in."""
        if name.startswith(self.merger):
            return "merger"
        return "vision" if name.startswith("model.visual.") else "language"


def decoder_layer_types(text_config: Any) -> list[str]:
    """What each decoder layer is; three of four of Qwen3.5 are recurrent (``linear_attention``)."""
    return list(getattr(text_config, "layer_types", None) or [FULL_ATTENTION] * text_config.num_hidden_layers)
