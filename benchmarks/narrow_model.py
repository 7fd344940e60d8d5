"""A narrow random model of a published configuration: the family's class, the true vocabulary, few layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast

from qwendet.families.choose import family_of
from qwendet.loading.processor import load_processor, save_processor

LAYERS = 4
BYTES = 256
TEXT = {
    "num_hidden_layers": LAYERS, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
VISION = {
    "depth": LAYERS, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": 16,
}  # fmt: skip


def write_narrow_model(source: Path, folder: Path, seed: int = 0, merges: int | None = None) -> Path:
    """Write a model that loads as the published one does.

    Args:
        source: published config, tokenizer and processor files.
        folder: gets the files; weights are float32.
        seed: of the weights.
        merges: of the published vocabulary the bytes and the first so many merges are kept, and every special
            token behind them; ``None`` keeps all.
    """
    config = AutoConfig.from_pretrained(source)
    family = family_of(config.model_type, str(source))
    processor = load_processor(str(source), family, None, None)
    _narrow(config)
    if merges is not None:
        _shorten(processor, config, merges)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, family.model_class)(config)
    model.save_pretrained(folder)
    save_processor(processor, folder)
    if merges is None and (generation := source / "generation_config.json").is_file():
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


def _shorten(processor: Any, config: Any, merges: int) -> None:
    """Cut the vocabulary; every special token gets another id, in the config too."""
    published = processor.tokenizer
    state = json.loads(published.backend_tokenizer.to_str())
    words = BYTES + merges
    state["model"]["vocab"] = {word: id for word, id in state["model"]["vocab"].items() if id < words}
    state["model"]["merges"] = state["model"]["merges"][:merges]
    moved = {token["id"]: words + index for index, token in enumerate(state["added_tokens"])}
    for token in state["added_tokens"]:
        token["id"] = moved[token["id"]]
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=published.eos_token,
        pad_token=published.pad_token,
        padding_side="left",
        chat_template=published.chat_template,
    )
    for part in (config, config.text_config):
        for name, id in part.to_dict().items():
            if name.endswith("_token_id") and id in moved:
                setattr(part, name, moved[id])
    config.text_config.vocab_size = words + len(moved)
