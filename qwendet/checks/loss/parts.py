"""The parts of the model that have learning rates of their own."""

from __future__ import annotations

from torch import nn

from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.precision import group_of


def parts(detector: Qwen25VLWithDetection) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of each part by name: vision, merger, language, head."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        found.setdefault(group_of(name.removeprefix("vlm."), detector.family), {})[name] = parameter
    return found
