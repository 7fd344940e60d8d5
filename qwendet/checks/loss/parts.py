"""The parts of the model that have learning rates of their own, told apart by the modules that hold them."""

from __future__ import annotations

from torch import nn

from qwendet.model.detector import Qwen25VLWithDetection

PARTS = ("vision", "merger", "language", "head")


def parts(detector: Qwen25VLWithDetection) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of each part by name, told apart by the module that holds them."""
    visual = detector.vlm.model.visual
    mergers = [visual.merger, getattr(visual, "deepstack_merger_list", None)]
    merger = {id(parameter) for module in mergers if module is not None for parameter in module.parameters()}
    vision = {id(parameter) for parameter in visual.parameters()} - merger
    head = set() if detector.head is None else {id(parameter) for parameter in detector.head.parameters()}
    found: dict[str, dict[str, nn.Parameter]] = {name: {} for name in PARTS}
    for name, parameter in detector.named_parameters():
        own = id(parameter)
        part = (
            "merger"
            if own in merger
            else "vision"
            if own in vision
            else "head"
            if own in head
            else "language"
        )
        found[part][name] = parameter
    return {name: parameters for name, parameters in found.items() if parameters}
