"""The base model as its files give it: every weight under its name, or an error that says which not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig

from qwendet.config.schema import ModelConfig
from qwendet.errors import CheckpointError, Problem
from qwendet.families.choose import family_in
from qwendet.loading.lora import in_4bit
from qwendet.model.attention import attention_by_part
from qwendet.model.precision import loading_in_float32
from qwendet.model.vision_tower import embed_by_product

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
) -> Any:
    """Load the transformers class of the family, every weight by name.

    Args:
        source: directory.
        model: dtype, attention and 4 bits, with nothing left open.
        weights: under the names that files give them, if they are in memory: no file of them is read.
        in_float32: groups whose weights are float32 where dtype is half precision.
    """
    vlm_config = base_config(source)
    family = family_in(Path(source))
    model_class = getattr(transformers, family.model_class)
    with explained_load_errors("model", source), loading_in_float32(model_class, family, in_float32):
        loaded: Any = model_class.from_pretrained(
            source if weights is None else None,
            config=None if weights is None else vlm_config,
            state_dict=weights,
            dtype=getattr(torch, model.dtype),
            attn_implementation=attention_by_part(model.attn_implementation),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
            use_safetensors=True,
            trust_remote_code=False,
            **in_4bit(model),
        )
    vlm, report = loaded
    embed_by_product(vlm.model.visual.patch_embed.proj)
    if weights is not None and (Path(source) / "generation_config.json").is_file():  # some have none
        vlm.generation_config = GenerationConfig.from_pretrained(source)
    problems = [
        Problem(f"{len(keys)} {kind.replace('_', ' ')}, such as {sorted(map(str, keys))[0]}", source, WHOLE)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (keys := report[kind])
    ]
    if problems:
        raise CheckpointError.of(problems)
    return vlm


def end_with_turn(settings: GenerationConfig, tokenizer: Any) -> None:
    """Have ``generate`` stop at the end of a turn, which the files of some models do not name."""
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if tokenizer.eos_token_id not in ends:
        settings.eos_token_id = [tokenizer.eos_token_id, *(end for end in ends if end is not None)]


def base_config(source: str) -> Any:
    """A model's ``config.json``, in its family's class."""
    family = family_in(Path(source))
    with explained_load_errors("model", source):
        config = getattr(transformers, family.model_class).config_class.from_pretrained(source)
    if quantization := getattr(config, "quantization_config", None):
        raise CheckpointError(
            f"the weights are quantized ({quantization.get('quant_method')}), which is not supported",
            source,
            "take the model that they were made of, in bfloat16 or float32",
        )
    return config


@contextmanager
def explained_load_errors(what: str, source: str) -> Iterator[None]:
    """Say in plain words that published files cannot be read."""
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
