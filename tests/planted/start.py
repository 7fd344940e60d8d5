"""The small model of each family that bugs are planted into."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, Qwen2VLImageProcessorPil

from qwendet.demo.tiny import TINY_FOLDER
from qwendet.families.choose import FAMILIES
from qwendet.loading.processor import make_processor, save_processor

LAYERS = 4
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}  # fmt: skip
VISION = {
    "depth": LAYERS, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48,
    "num_position_embeddings": 16, "out_hidden_size": TEXT["hidden_size"],
}  # fmt: skip
IN_BLOCKS = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [2, 3, 3]}
INTERLEAVED = IN_BLOCKS | {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
OWN: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "text": {"head_dim": 16, "rope_parameters": IN_BLOCKS},
        "vision": VISION | {"embed_dim": 32, "hidden_size": TEXT["hidden_size"], "mlp_ratio": 2},
    },
    "qwen3_vl": {
        "text": {"rope_parameters": INTERLEAVED},
        "vision": VISION | {"deepstack_visual_indexes": [0, 1, 2]},
    },
    "qwen3_5": {
        "text": {
            "rope_parameters": INTERLEAVED | {"partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1]},
            "layer_types": ["linear_attention"] * (LAYERS - 1) + ["full_attention"],
        },
        "vision": VISION | {"deepstack_visual_indexes": []},
    },
}  # fmt: skip
HEAD = {"hidden_size": 32, "num_layers": 1}
THINKING = (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)


@cache
def start_of(family: str) -> str:
    """``model.path`` of a small model of a family: the embedded one, else a random one, made once.

    Args:
        family: its model_type.
    """
    if family == "qwen2_5_vl":
        return "tiny"
    folder = Path(tempfile.mkdtemp(prefix=f"qwendet-{family}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _write(family, folder)
    return str(folder)


def folder_of(family: str) -> Path:
    """Where its files are."""
    return TINY_FOLDER if start_of(family) == "tiny" else Path(start_of(family))


def settings_of(family: str) -> list[str]:
    """Settings of a sound project with that model: a random one gets a small head."""
    if start_of(family) == "tiny":
        return []
    return [f"model.path={start_of(family)}", *(f"detection.{name}={size}" for name, size in HEAD.items())]


def _write(model_type: str, folder: Path) -> None:
    family, tokenizer = FAMILIES[model_type], AutoTokenizer.from_pretrained(TINY_FOLDER)
    if family.answer_prefix:
        tokenizer.add_tokens(["<think>", "</think>"])
        header = "<|im_start|>assistant\n"
        tokenizer.chat_template = tokenizer.chat_template.replace(header, header + THINKING)
    token = tokenizer.get_vocab().__getitem__
    own = OWN[model_type]
    end = "<|endoftext|>" if family.answer_prefix else "<|im_end|>"  # small Qwen3.5 are published so
    ends = {"eos_token_id": token(end), "pad_token_id": token("<|endoftext|>"), "bos_token_id": None}
    config = AutoConfig.for_model(
        model_type,
        text_config=TEXT | ends | {"vocab_size": len(tokenizer)} | own["text"],
        vision_config=own["vision"],
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, family.model_class)(config)
    model.save_pretrained(folder)
    if family.answer_prefix:
        (folder / "generation_config.json").unlink()
    unit = family.limits.unit
    images = Qwen2VLImageProcessorPil(
        min_pixels=(2 * unit) ** 2,
        max_pixels=(8 * unit) ** 2,
        patch_size=unit // 2,
        image_mean=family.image_mean,
        image_std=family.image_std,
    )
    save_processor(make_processor(family, images, tokenizer), folder)
