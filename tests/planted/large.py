"""The sound project as a large model has it: 36 layers in bfloat16, which no check may copy whole."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from qwendet.checks import subject as subject_module
from qwendet.config.load import override_config
from qwendet.config.schema import Config
from qwendet.files import atomic_folder
from qwendet.loader import load
from qwendet.loading.checkpoint import save_checkpoint

REPEATED = 9
"""Times that each of the embedded model's four decoder layers stands in the deep one."""


@torch.no_grad()
def write_deep_model(config: Config, folder: Path) -> None:
    """Write the embedded model with 36 decoder layers in bfloat16, as a checkpoint.

    What a layer adds is divided by the times that it is repeated, so that states keep their size.

    Args:
        config: of a sound project with the embedded model.
        folder: where to write.
    """
    bundle = load(override_config(config, ["model.dtype=float32"]), for_inference=False)
    model = bundle.detector.vlm.model.language_model
    for layer in model.layers:
        layer.self_attn.o_proj.weight /= REPEATED
        layer.mlp.down_proj.weight /= REPEATED
    model.layers = nn.ModuleList(copy.deepcopy(layer) for layer in model.layers for _ in range(REPEATED))
    for index, layer in enumerate(model.layers):
        layer.self_attn.layer_idx = index
    text = bundle.detector.config.text_config
    text.num_hidden_layers = len(model.layers)
    text.layer_types = text.layer_types * REPEATED
    bundle.detector.vlm.bfloat16()
    settled = override_config(bundle.config, ["model.dtype=bfloat16", "train.autocast=bf16"])
    with atomic_folder(folder) as staging:
        save_checkpoint(staging, bundle.detector, bundle.processor, settled, step=0)


def take_for_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every model for one too large to be copied."""
    monkeypatch.setattr(subject_module, "SMALL", 0)
