"""The embedded default: a faithful Qwen2.5-VL of under 3 M parameters with its head.

Same classes, processor, special tokens and chat format as the published model; its own small
byte-level vocabulary. :func:`write_untrained` makes it with random weights; the weights that ship in
``qwendet/assets/tiny`` were trained by ``benchmarks/pretrain_tiny.py``.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

from qwendet.answers.format import format_answer
from qwendet.config.schema import DEFAULT_REQUEST
from qwendet.data.samples import DetectedObject
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.loading.processor import make_processor, save_processor
from qwendet.model.head import HeadShape

TINY_FOLDER = Path(__file__).parent.parent / "assets" / "tiny"
UNTRAINED = "tiny-untrained"  # model.path of the tiny model before pre-training
VOCABULARY = 640
# Columns are turned by the lowest frequencies. With a base of 10,000 the few columns of a small image would
# differ by less than 0.03 rad, and the language model could not tell left from right.
ROPE_THETA = 10.0

# Special tokens of Qwen2.5-VL in the order of their published ids (151643 and up).
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip

# fmt: off
COLOURS = (
    "red", "green", "blue", "orange", "purple", "cyan", "yellow", "pink", "white", "black", "brown", "grey",
)
SHAPES = (
    "circle", "square", "triangle", "ring", "star", "cross", "crescent", "diamond", "hexagon", "ellipse",
)
# fmt: on

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TINY_HEAD = HeadShape(vision_size=128, text_size=160, hidden_size=128, num_layers=2, num_heads=4)


def tiny_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """Sizes of the tiny model for a vocabulary."""
    token = tokenizer.get_vocab().__getitem__
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TINY_HEAD.text_size,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [2, 9, 9]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 4,
            "hidden_size": TINY_HEAD.vision_size,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": TINY_HEAD.text_size,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Train the byte-level BPE vocabulary; special tokens follow it, as in the published one."""
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = Qwen2Tokenizer(vocab={}).backend_tokenizer  # cuts texts as the published one does
    bpe.train_from_iterator(texts, trainer)
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],  # type: ignore[misc]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
    )
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    return tokenizer


def tokenizer_texts() -> list[str]:
    """What the vocabulary is trained on: prompts, and answers with names of colours and shapes."""
    generator = np.random.default_rng(0)
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    texts = [DEFAULT_REQUEST.replace("{labels}", f"{name}, {name}") for name in names]
    texts += [f"{QWEN2_5_VL.system_prompt}\nsystem\nuser\nassistant\n"] * 50
    for _ in range(3000):
        boxes = np.sort(generator.integers(0, 168, (generator.integers(0, 6), 2, 2)), axis=1).reshape(-1, 4)
        objects = [
            DetectedObject(tuple(box), names[generator.integers(len(names))])  # type: ignore[arg-type]
            for box in boxes.tolist()
        ]
        texts.append(format_answer(objects))
    return texts


@cache
def write_untrained() -> Path:
    """Write the tiny model with random weights to a temporary directory.

    Returns:
        A plain Hugging Face directory, the same for the whole process.
    """
    folder = Path(tempfile.mkdtemp(prefix="qwendet-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = train_tokenizer(tokenizer_texts())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vlm = Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer))
    vlm.save_pretrained(folder)
    image_processor = Qwen2VLImageProcessorPil(
        min_pixels=56 * 56, max_pixels=112 * 112 * 4
    )  # suits small images
    save_processor(make_processor(QWEN2_5_VL, image_processor, tokenizer), folder)
    return folder
