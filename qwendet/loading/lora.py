"""LoRA: small trained matrices beside the frozen ones of the transformers class, put in place by peft.

    q_proj.weight  ─►  q_proj.base_layer.weight            frozen, as it was
                       q_proj.lora_A.default.weight  (rank, in)    trained
                       q_proj.lora_B.default.weight  (out, rank)   trained, zero at first

The class stays the published one, and a parameter's name still begins with the part that it is in.
A checkpoint keeps the adapter in peft's own layout and the base's fingerprint, not the base.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from qwendet.config.schema import LoraConfig, ModelConfig
from qwendet.errors import CheckpointError, ConfigError
from qwendet.families.choose import family_of
from qwendet.families.family import Family
from qwendet.model.spread import fill

if TYPE_CHECKING:
    import peft

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # of the names in peft's files
ADAPTER = "default"


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter belongs to an adapter.

    Example:
        >>> is_adapter("vlm.model.visual.blocks.0.attn.qkv.lora_A.default.weight")
        True
    """
    return ".lora_A." in parameter_name or ".lora_B." in parameter_name


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter was put into a model."""
    return any(is_adapter(name) for name, _ in model.named_parameters())


def add_adapter(vlm: Any, lora: LoraConfig, seed: int) -> None:
    """Put an adapter that changes nothing yet into a model, and freeze the rest of it.

    Its matrices are float32 where the model is in half precision: small updates would be rounded away.
    """
    from peft import inject_adapter_in_model

    settings = _peft_config(lora, family_of(vlm.config.model_type, "the model in memory"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, vlm, ADAPTER)
        except ValueError as error:
            raise ConfigError(
                f"no adapter can be put there: {str(error).splitlines()[0]}",
                "model.lora.targets",
                "give language, vision or all, or names of linear layers such as q_proj",
            ) from error
    for name, parameter in vlm.named_parameters():
        if is_adapter(name) and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def _peft_config(lora: LoraConfig, family: Family) -> peft.LoraConfig:
    import peft

    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated as int; it is only divided
        lora_dropout=lora.dropout,
        target_modules=_pattern(lora.targets, family),
        base_model_name_or_path=lora.base,
        revision=lora.revision,
        bias="none",
    )


def _pattern(targets: tuple[str, ...], family: Family) -> str:
    r"""A pattern of whole module names.

    Example:
        >>> from qwendet.families.choose import FAMILIES
        >>> {_pattern(("q_proj",), family) for family in FAMILIES.values()}
        {'(.*\\.)?q_proj'}
    """
    parts = {name: f"({pattern})" for name, pattern in family.lora.items()}
    parts["all"] = f"({'|'.join(parts.values())})"
    return "|".join(parts.get(name, rf"(.*\.)?{re.escape(name)}") for name in targets)


def in_4bit(model: ModelConfig) -> dict[str, Any]:
    """What makes transformers load the base in 4 bits, if ``model.lora.load_in_4bit`` asks for it."""
    lora = model.lora
    if lora is None or not lora.load_in_4bit:
        return {}
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, model.dtype),
    )
    # Of the processes that a launcher started, each has a GPU of its own, as accelerate deals them.
    own_gpu = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    return {"quantization_config": settings, "device_map": {"": own_gpu}}


@contextmanager
def without_adapter(vlm: nn.Module) -> Iterator[None]:
    """Compute as the base does, until the block ends."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in vlm.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def merge_adapter(vlm: nn.Module) -> None:
    """Add what the adapter learned to the base's weights, and remove it."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(vlm.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            what = f"the adapter cannot be merged: {error}"
            raise CheckpointError(what, name, "take an earlier checkpoint: its weights are finite") from error
        parent, _, own = name.rpartition(".")
        setattr(vlm.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(vlm, "peft_config"):
        del vlm.peft_config


# Files


def save_adapter(weights: Mapping[str, Tensor], lora: LoraConfig, family: Family, folder: Path) -> None:
    """Write the adapter as peft does, so that ``peft`` loads it without qwendet."""
    adapter = {
        _name_in_file(name): tensor.detach().contiguous()
        for name, tensor in weights.items()
        if is_adapter(name)
    }
    safetensors.torch.save_file(adapter, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    _peft_config(lora, family).save_pretrained(str(folder))


def load_adapter(vlm: nn.Module, folder: Path) -> None:
    """Load an adapter's weights, every one of them and no other."""
    own = {_name_in_file(name): weight for name, weight in vlm.named_parameters() if is_adapter(name)}
    fill(own, folder, ADAPTER_WEIGHTS, "adapter")


def _name_in_file(name: str) -> str:
    return PEFT_PREFIX + name.replace(f".{ADAPTER}.", ".")


# The base


def fingerprint(base: Path) -> str:
    """SHA-256 over names, shapes, types and bytes of a base model's stored weights.

    It does not depend on how they are spread over files, nor on the type they are loaded in.
    """
    whole = base / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(base.glob("model-*.safetensors"))
    lines = sorted(line for file in files for line in _describe(file))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _describe(file: Path) -> Iterator[str]:
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # not a mapping
            tensor: Tensor = weights.get_tensor(name)
            content = hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)} {content.hexdigest()}"
