"""What ``auto`` means on this machine, and what of the settings it cannot give."""

from __future__ import annotations

import importlib.util
import logging

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from qwendet.config import LoraConfig, ModelConfig
from qwendet.errors import EnvironmentLacksError

logger = logging.getLogger("qwendet")


def settle(model: ModelConfig) -> ModelConfig:
    """Fill in what ``auto`` leaves open, and say it.

    Raises:
        EnvironmentLacksError: if a named device, dtype, attention or a base in 4 bits is not to be had here.
    """
    device = _resolve_device(model.device)
    dtype = _resolve_dtype(model.dtype, device)
    attention = _resolve_attention(model.attn_implementation, device, dtype)
    _require_4bit(model.lora, device)
    logger.info("device: %s, dtype: %s, attention: %s", device, dtype, attention)
    settled = {"device": device, "dtype": dtype, "attn_implementation": attention}
    return model.model_copy(update=settled)


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


def _resolve_dtype(dtype: str, device: str) -> str:
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def _resolve_attention(attention: str, device: str, dtype: str) -> str:
    lacking = _why_no_flash_attention(device, dtype)
    if attention == "auto":
        return "sdpa" if lacking else "flash_attention_2"
    if attention == "flash_attention_2" and lacking:
        raise EnvironmentLacksError(
            f"flash_attention_2 needs {lacking}",
            "model.attn_implementation",
            "pip install 'qwendet[flash]' on a machine with an NVIDIA GPU, or set it to sdpa",
        )
    return attention


def _why_no_flash_attention(device: str, dtype: str) -> str:
    if device != "cuda":
        return "a CUDA GPU"
    if not is_flash_attn_2_available():  # a package of that name may hold another version's kernels alone
        return "the package flash-attn"
    return "" if dtype in ("bfloat16", "float16") else f"bfloat16 or float16, not {dtype}"
