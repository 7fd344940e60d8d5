"""A random Qwen2.5-VL of the true vocabulary, and photographs: what the speed benchmarks share.

It has the published tokenizer, chat template and special tokens, and the published proportions: an MLP 5.4
(text) and 2.7 (vision) times as wide as the model, and one vision layer in four that sees the whole image.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

SHARED = Path(os.environ.get("QWENDET_SHARED", "../shared"))
PROCESSOR = SHARED / "qwen_processor" / "Qwen2.5-VL-7B-Instruct"
PHOTOGRAPHS = SHARED / "data" / "bccd" / "BCCD"
MAX_PIXELS = 200_704
MODEL_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
"""What the published model takes of a batch."""
VOCABULARY = 152_064
TEXT = {
    "hidden_size": 256, "intermediate_size": 1376, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
}  # fmt: skip
VISION = {
    "hidden_size": 160, "intermediate_size": 428, "depth": 4, "num_heads": 2, "fullatt_block_indexes": [3],
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
    folder: Path, *, full_size: bool = False, dtype: str = "float32", device: str = "cpu"
) -> Path:
    """Write a random model as a plain Hugging Face directory.

    Args:
        folder: gets the files.
        full_size: the size of Qwen2.5-VL-3B instead of a small one.
        dtype: type of the weights.
        device: where they are drawn.
    """
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from qwendet.families.qwen2_5_vl import QWEN2_5_VL
    from qwendet.loading.processor import make_processor, save_processor

    tokenizer = AutoTokenizer.from_pretrained(PROCESSOR, padding_side="left")
    text, vision = (FULL_SIZE_TEXT, FULL_SIZE_VISION) if full_size else (TEXT, VISION)
    end = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2_5_VLConfig(
        text_config={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, **end, **text},
        vision_config={"out_hidden_size": text["hidden_size"], **vision},
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(default)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    images = Qwen2VLImageProcessorPil.from_pretrained(PROCESSOR)
    save_processor(make_processor(QWEN2_5_VL, images, tokenizer), folder)
    return folder


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
