"""What ``auto`` means on this machine, and what of the settings it cannot give."""

from __future__ import annotations

import importlib.util
import logging

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from qwendet.config.contradictions import AUTOCAST_OF
from qwendet.config.schema import Config, LoraConfig
from qwendet.errors import EnvironmentLacksError

logger = logging.getLogger("qwendet")


def resolve_environment(config: Config) -> Config:
    """Fill in what ``auto`` leaves open of ``model`` and ``train.autocast``, and say it."""
    model, train = config.model, config.train
    device = _resolve_device(model.device)
    dtype = _resolve_dtype(model.dtype, device, train.autocast)
    autocast = AUTOCAST_OF[dtype] if train.autocast == "auto" else train.autocast
    if train.weights == "bfloat16" and dtype != "bfloat16":
        raise EnvironmentLacksError(
            f"train.weights is bfloat16, but the type chosen for this machine is {dtype}",
            "train.weights",
            "set model.dtype to bfloat16 as well, or train.weights to float32",
        )
    attention = _resolve_attention(
        model.attn_implementation, device, dtype if autocast == "none" else autocast
    )
    _require_4bit(model.lora, device)
    logger.info("device: %s, dtype: %s, autocast: %s, attention: %s", device, dtype, autocast, attention)
    resolved = {"device": device, "dtype": dtype, "attn_implementation": attention}
    return config.model_copy(
        update={
            "model": model.model_copy(update=resolved),
            "train": train.model_copy(update={"autocast": autocast}),
        }
    )


def _resolve_device(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentLacksError(
            "model.device is cuda, but torch sees no CUDA GPU", "model.device", "set it to auto or cpu"
        )
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _require_4bit(lora: LoraConfig | None, device: str) -> None:
    if lora is None or not lora.load_in_4bit:
        return
    has_package = importlib.util.find_spec("bitsandbytes") is not None
    if device != "cuda" or not has_package:
        raise EnvironmentLacksError(
            f"a base in 4 bits needs {'a CUDA GPU' if device != 'cuda' else 'the package bitsandbytes'}",
            "model.lora.load_in_4bit",
            "pip install 'qwendet[qlora]' on a machine with an NVIDIA GPU, or set it to false",
        )


def _resolve_dtype(dtype: str, device: str, autocast: str) -> str:
    if dtype != "auto":
        return dtype
    is_wanted = device == "cuda" and autocast in ("auto", "bf16")
    return "bfloat16" if is_wanted and torch.cuda.is_bf16_supported() else "float32"


def _resolve_attention(attention: str, device: str, computed: str) -> str:
    lacking = _why_no_flash_attention(device, computed)
    if attention == "auto":
        return "sdpa" if lacking else "flash_attention_2"
    if attention == "flash_attention_2" and lacking:
        raise EnvironmentLacksError(
            f"flash_attention_2 needs {lacking}",
            "model.attn_implementation",
            "pip install 'qwendet[flash]' on a machine with an NVIDIA GPU, or set it to sdpa",
        )
    return attention


def _why_no_flash_attention(device: str, computed: str) -> str:
    if device != "cuda":
        return "a CUDA GPU"
    if not is_flash_attn_2_available():  # a package of that name may hold another version's kernels alone
        return "the package flash-attn"
    is_half = computed in ("bf16", "fp16")
    return "" if is_half else f"bfloat16 or float16, not {computed}: train.autocast bf16 does"
