"""A narrow random model of a published configuration: the family's class, the true vocabulary, few layers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from qwendet.families.choose import family_of
from qwendet.loading.processor import load_processor, save_processor

LAYERS = 4
TEXT = {
    "num_hidden_layers": LAYERS, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
VISION = {
    "depth": LAYERS, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": 16,
}  # fmt: skip


def write_narrow_model(source: Path, folder: Path, seed: int = 0) -> Path:
    """Write a model that loads as the published one does.

    Args:
        source: published config, tokenizer and processor files.
        folder: gets the files; weights are float32.
        seed: of the weights.
    """
    config = AutoConfig.from_pretrained(source)
    family = family_of(config.model_type, str(source))
    _narrow(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, family.model_class)(config)
    model.save_pretrained(folder)
    save_processor(load_processor(str(source), family, None, None), folder)
    if (generation := source / "generation_config.json").is_file():
        shutil.copy(generation, folder)
    return folder


def _narrow(config: Any) -> None:
    text, vision = config.text_config, config.vision_config
    for part, sizes in ((text, TEXT), (vision, VISION)):
        for name, size in sizes.items():
            if hasattr(part, name):
                setattr(part, name, size)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:LAYERS]
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    half = int(head * text.rope_parameters.get("partial_rotary_factor", 1.0)) // 2
    side = half * 3 // 8
    text.rope_parameters["mrope_section"] = [half - 2 * side, side, side]
    if hasattr(vision, "embed_dim"):  # where hidden_size is the merger's
        vision.embed_dim, vision.hidden_size, vision.mlp_ratio = 32, text.hidden_size, 2
    else:
        vision.hidden_size = 32
    if hasattr(vision, "fullatt_block_indexes"):
        vision.fullatt_block_indexes = [1, LAYERS - 1]
    if getattr(vision, "deepstack_visual_indexes", None):
        vision.deepstack_visual_indexes = [0, 1, 2]
