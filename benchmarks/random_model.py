"""A random model of the true vocabulary, and photographs: what the speed benchmarks share.

It has the published tokenizer, chat template and special tokens, and MLPs as much wider than the model as
the published ones; one layer in four of Qwen2.5-VL's vision tower sees the whole image.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("QWENDET_SHARED", "../shared"))
PUBLISHED = SHARED / "qwen_processor"
PHOTOGRAPHS = SHARED / "data" / "bccd" / "BCCD"
MAX_PIXELS = 200_704
MODEL_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
"""What the base model takes of a batch."""
FOLDERS = {"qwen2_5_vl": "Qwen2.5-VL-7B-Instruct", "qwen3_vl": "Qwen3-VL-4B-Instruct"}
"""Of the published files, by family."""
TEXT: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "hidden_size": 256, "intermediate_size": 1376, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    },
    "qwen3_vl": {
        "hidden_size": 256, "intermediate_size": 976, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6,
            "mrope_section": [12, 10, 10], "mrope_interleaved": True,
        },
    },
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "hidden_size": 160, "intermediate_size": 428, "depth": 4, "num_heads": 2,
        "fullatt_block_indexes": [3],
    },
    "qwen3_vl": {
        "hidden_size": 160, "intermediate_size": 640, "depth": 4, "num_heads": 2,
        "deepstack_visual_indexes": [0, 1, 2],
    },
}  # fmt: skip
FULL_SIZE_TEXT = {
    "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151_936,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
FULL_SIZE_VISION = {
    "hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip


def write_model(
    folder: Path,
    family: str = "qwen2_5_vl",
    *,
    full_size: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
) -> Path:
    """Write a random model as a plain Hugging Face directory.

    Args:
        folder: gets the files.
        family: its ``model_type``.
        full_size: the size of Qwen2.5-VL-3B or Qwen3-VL-4B instead of a small one.
        dtype: type of the weights.
        device: where they are drawn.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from qwendet.families.choose import family_of
    from qwendet.loading.processor import load_processor, save_processor

    published = PUBLISHED / FOLDERS[family]
    processor = load_processor(str(published), family_of(family, str(published)), None, None)
    config = AutoConfig.from_pretrained(published)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    config.text_config.eos_token_id = processor.tokenizer.eos_token_id
    config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    if not (full_size and family == "qwen3_vl"):
        text, vision = (FULL_SIZE_TEXT, FULL_SIZE_VISION) if full_size else (TEXT[family], VISION[family])
        _resize(config.text_config, text)
        _resize(config.vision_config, {"out_hidden_size": text["hidden_size"], **vision})
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    torch.set_default_dtype(default)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    save_processor(processor, folder)
    return folder


def _resize(config: Any, sizes: dict[str, Any]) -> None:
    for name, size in sizes.items():
        setattr(config, name, size)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * sizes["num_hidden_layers"]


def write_photographs(folder: Path, count: int) -> Path:
    """Write a JSONL of BCCD training photographs drawn at random; its ``data.root`` is :data:`PHOTOGRAPHS`.

    Not the first of them: those have 16.9 boxes each, the average is 13.7.
    """
    from qwendet.data.formats.convert import Conversion, convert_dataset

    convert_dataset(PHOTOGRAPHS, folder, Conversion(source="voc", images="reference"))
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) < count:
        raise SystemExit(f"{PHOTOGRAPHS} has {len(lines)} training photographs, {count} were asked for")
    path = folder / "photographs.jsonl"
    path.write_text("".join(random.Random(0).sample(lines, count)), encoding="utf-8")
    return path
