"""The head that a config asks for: with the checkpoint's sizes, or a new one's."""

from __future__ import annotations

from typing import Any

import torch

from qwendet.config.schema import Config, DetectionConfig
from qwendet.errors import CheckpointError, ConfigError
from qwendet.model.head import DetectionHead, HeadShape

NEW_HEAD = {"hidden_size": 256, "num_layers": 3, "num_heads": 8}
"""Sizes that ``null`` in ``detection`` stands for, where there is no trained head."""


def head_shape(detection: DetectionConfig, vlm_config: Any, stored: HeadShape | None = None) -> HeadShape:
    """The sizes that a config asks for."""
    defaults = NEW_HEAD if stored is None else {name: getattr(stored, name) for name in NEW_HEAD}
    sizes = {name: getattr(detection, name) or default for name, default in defaults.items()}
    vision = vlm_config.vision_config  # calls its width embed_dim where hidden_size is the merger's
    width = getattr(vision, "embed_dim", vision.hidden_size)
    return HeadShape(width, vlm_config.text_config.hidden_size, **sizes)


def build_head(
    config: Config, vlm_config: Any, stored: HeadShape | None, *, for_inference: bool
) -> DetectionHead | None:
    """Build the head, its weights drawn with ``train.seed``; ``None`` if ``detection.enabled`` is false."""
    if not config.detection.enabled:
        return None
    if stored is None and for_inference:
        raise CheckpointError(
            "detection.enabled is true, but the checkpoint has no head: inference would use random weights",
            config.model.path,
            "set detection.enabled to false, or train a head first",
        )
    shape = head_shape(config.detection, vlm_config, stored)
    if stored is not None and shape != stored:
        raise CheckpointError(
            f"the config wants the head {shape}, the checkpoint has {stored}",
            config.model.path,
            "leave detection.hidden_size, num_layers and num_heads at null to take the checkpoint's",
        )
    if shape.hidden_size % shape.num_heads:
        raise ConfigError(
            f"the head's width {shape.hidden_size} cannot be split into {shape.num_heads} attention heads",
            "detection.num_heads",
            "choose a divisor of detection.hidden_size",
        )
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        return DetectionHead(shape, config.detection.num_queries)
