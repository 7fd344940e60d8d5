"""The embedded models: of each family a faithful one of at most 3 M parameters.

Same classes, processor, special tokens and chat format as the published models; their own small
byte-level vocabulary. :func:`write_untrained` makes them with random weights; the weights that ship in
``qwendet/assets`` were trained by ``benchmarks/pretrain_tiny.py``.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedConfig, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from qwendet.answers.format import format_answer
from qwendet.config.schema import DEFAULT_REQUEST, EMBEDDED_MODELS
from qwendet.data.samples import DetectedObject
from qwendet.families.chat import END_OF_TURN
from qwendet.families.choose import FAMILIES, embedded_limits
from qwendet.families.family import Family
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.families.qwen2_vl import QWEN2_VL
from qwendet.families.qwen3_5 import QWEN3_5
from qwendet.families.qwen3_vl import QWEN3_VL
from qwendet.loading.processor import make_processor, save_processor

ASSETS = Path(__file__).parent.parent / "assets"
TINY_FOLDER = ASSETS / "tiny"
SHIPPED = ("tiny", "tiny-qwen3-vl")
"""Names in ``model.path`` of what ships trained, in the folder of ``ASSETS`` that is called so."""

VOCABULARY = 640
MERGE = 2
TEXT_SIZE = 160

# Special tokens of Qwen2-VL in the order of their published ids (151643 and up); each later family adds some.
# fmt: off
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)
TOOL_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)
THINK_TOKENS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
SPEECH_TOKENS = (
    "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
    "<tts_text_bos_single>", "<|audio_pad|>",
)


COLOURS = (
    "red", "green", "blue", "orange", "purple", "cyan", "yellow", "pink", "white", "black", "brown", "grey",
)
SHAPES = (
    "circle", "square", "triangle", "ring", "star", "cross", "crescent", "diamond", "hexagon", "ellipse",
)
# fmt: on


@dataclass(frozen=True)
class Sizes:
    """What a family's tiny model has of its own."""

    special_tokens: tuple[str, ...]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]


# Columns are turned by the lowest frequencies. With a base of 10,000 the few columns of a small image would
# differ by less than 0.03 rad, and the language model could not tell left from right.
ROPE_2 = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [2, 9, 9]}
TEXT = {
    "hidden_size": TEXT_SIZE,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
}
# As wide as the mergers leave room for: there are three of them. Its positions are learned ones.
VISION_3 = {
    "depth": 4,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": TEXT_SIZE,
    "num_position_embeddings": 8 * 8,
}

SIZES = {
    QWEN2_VL.model_type: Sizes(
        SPECIAL_TOKENS,
        TEXT | {"rope_parameters": ROPE_2},
        {"depth": 4, "embed_dim": 128, "hidden_size": TEXT_SIZE, "mlp_ratio": 2, "num_heads": 4},
    ),
    QWEN2_5_VL.model_type: Sizes(
        SPECIAL_TOKENS + TOOL_TOKENS,
        TEXT | {"rope_parameters": ROPE_2},
        {
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": TEXT_SIZE,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
    ),
    QWEN3_VL.model_type: Sizes(
        SPECIAL_TOKENS + TOOL_TOKENS + THINK_TOKENS,
        TEXT
        | {
            "head_dim": 64,
            "intermediate_size": 256,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
        },
        VISION_3 | {"deepstack_visual_indexes": [1, 2]},
    ),
    QWEN3_5.model_type: Sizes(
        SPECIAL_TOKENS + TOOL_TOKENS + THINK_TOKENS + SPEECH_TOKENS,
        TEXT
        | {
            "head_dim": 64,
            "intermediate_size": 256,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.25,
                "mrope_section": [3, 3, 2],
                "mrope_interleaved": True,
            },
        },
        VISION_3,
    ),
}


def chat_template(family: Family) -> str:
    """What the published template writes of texts and images, the system turn being among the messages."""
    asked = "{% if add_generation_prompt %}<|im_start|>assistant\n" + family.answer_prefix + "{% endif %}"
    answered = "{% if message['role'] == 'assistant' and loop.last %}" + family.answer_prefix + "{% endif %}"
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        + answered * bool(family.answer_prefix)
        + "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}" + asked
    )


def tiny_config(family: Family, tokenizer: Qwen2Tokenizer) -> PreTrainedConfig:
    """Sizes of a family's tiny model for a vocabulary."""
    token, sizes = tokenizer.get_vocab().__getitem__, deepcopy(SIZES[family.model_type])
    ends = {
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token(END_OF_TURN),
        "pad_token_id": token("<|endoftext|>"),
    }
    return AutoConfig.for_model(
        family.model_type,
        text_config={**sizes.text, "vocab_size": len(tokenizer), **ends},
        vision_config=sizes.vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def train_tokenizer(family: Family, texts: Iterable[str]) -> Qwen2Tokenizer:
    """Train the byte-level BPE vocabulary; special tokens follow it, as in the published one."""
    special_tokens = SIZES[family.model_type].special_tokens
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = Qwen2Tokenizer(vocab={}).backend_tokenizer  # cuts texts as the published one does
    bpe.train_from_iterator(texts, trainer)
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],  # type: ignore[misc]
        eos_token=END_OF_TURN,
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=chat_template(family),
        model_max_length=8192,
    )
    tokenizer.add_tokens(list(special_tokens), special_tokens=True)
    return tokenizer


def tokenizer_texts(family: Family) -> list[str]:
    """What the vocabulary is trained on: prompts, and answers with names of colours and shapes."""
    width, _ = family.answer_size((168, 168))
    generator = np.random.default_rng(0)
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    texts = [DEFAULT_REQUEST.replace("{labels}", f"{name}, {name}") for name in names]
    texts += [f"{family.system_prompt}\nsystem\nuser\nassistant\n"] * 50
    for _ in range(3000):
        boxes = np.sort(generator.integers(0, width, (generator.integers(0, 6), 2, 2)), axis=1).reshape(-1, 4)
        objects = [
            DetectedObject(tuple(box), names[generator.integers(len(names))])  # type: ignore[arg-type]
            for box in boxes.tolist()
        ]
        texts.append(format_answer(objects, family.answer_form))
    return texts


def embedded_folder(name: str) -> Path:
    """Files of an embedded model: those that ship, or made from a seed."""
    return ASSETS / name if name in SHIPPED else write_untrained(FAMILIES[EMBEDDED_MODELS[name]])


@cache
def write_untrained(family: Family = QWEN2_5_VL) -> Path:
    """Write a tiny model with random weights, always the same, to a temporary directory."""
    folder = Path(tempfile.mkdtemp(prefix="qwendet-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = train_tokenizer(family, tokenizer_texts(family))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vlm = getattr(transformers, family.model_class)(tiny_config(family, tokenizer))
    vlm.save_pretrained(folder)
    save_processor(make_processor(family, image_processor(family), tokenizer), folder)
    return folder


def image_processor(family: Family) -> Qwen2VLImageProcessorPil:
    """The family's, with limits that suit small images."""
    limits = embedded_limits(family)
    return Qwen2VLImageProcessorPil(
        min_pixels=limits.min_pixels,
        max_pixels=limits.max_pixels,
        patch_size=limits.unit // MERGE,
        merge_size=MERGE,
        image_mean=list(family.image_mean),
        image_std=list(family.image_std),
    )
