"""The published model as its files give it: every weight under its name, or an error that says which not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from qwendet.config.schema import ModelConfig
from qwendet.errors import CheckpointError, Problem
from qwendet.loading.lora import in_4bit
from qwendet.model.attention import attention_by_part
from qwendet.model.patch_embedding import embed_by_product
from qwendet.model.precision import loading_in_float32

MODEL_TYPE = "qwen2_5_vl"
# What transformers raises for absent, cut or malformed files.
UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
WHOLE = "take a directory that holds every weight of its model, under the published names"


def load_vlm(
    source: str,
    model: ModelConfig,
    weights: Mapping[str, Tensor] | None = None,
    in_float32: Collection[str] = (),
) -> Qwen2_5_VLForConditionalGeneration:
    """Load the published class, every weight by name.

    Args:
        source: directory.
        model: dtype, attention and 4 bits, with nothing left open.
        weights: under the names that files give them, if they are in memory: no file of them is read.
        in_float32: groups whose weights are float32 where dtype is half precision.

    Raises:
        CheckpointError: for files that cannot be read; for a weight missing, left over or of another shape.
    """
    with reading("model", source), loading_in_float32(in_float32):
        model_type = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        if model_type != MODEL_TYPE:  # transformers would build a model of default size, tens of gigabytes
            raise ValueError(f"expected a config.json with model_type {MODEL_TYPE}, got {model_type}")
        from_memory = None if weights is None else Qwen2_5_VLConfig.from_pretrained(source)
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            source if weights is None else None,
            config=from_memory,
            state_dict=weights,
            dtype=getattr(torch, model.dtype),
            attn_implementation=attention_by_part(model.attn_implementation),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
            use_safetensors=True,
            trust_remote_code=False,
            **in_4bit(model),
        )
    vlm: Qwen2_5_VLForConditionalGeneration
    vlm, report = loaded
    embed_by_product(vlm.model.visual.patch_embed.proj)
    if weights is not None:
        vlm.generation_config = GenerationConfig.from_pretrained(source)
    problems = [
        Problem(f"{len(keys)} {kind.replace('_', ' ')}, such as {sorted(map(str, keys))[0]}", source, WHOLE)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (keys := report[kind])
    ]
    if problems:
        raise CheckpointError.of(problems)
    return vlm


@contextmanager
def reading(what: str, source: str) -> Iterator[None]:
    """Say in plain words that published files cannot be read.

    Raises:
        CheckpointError: for files that are absent, cut or malformed.
    """
    try:
        yield
    except UNREADABLE as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the {what} cannot be loaded: {first_line}",
            source,
            "give tiny, a directory with config.json, *.safetensors, tokenizer and processor files,"
            " or a hub id that can be reached",
        ) from error
