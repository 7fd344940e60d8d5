"""Checkpoints: a plain Hugging Face directory, the head beside it, and a manifest that proves both.

    config.json, generation_config.json, model*.safetensors, tokenizer and processor files
    adapter_config.json, adapter_model.safetensors      with LoRA, in place of config and model
    head/detection_head.safetensors     only with the head; vLLM reads every *.safetensors beside config.json
    qwendet.json                        the manifest: what was trained, and the hash of every byte of it

Nothing is unpickled; a checkpoint that differs from its manifest in anything is refused.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from qwendet.config.schema import Config
from qwendet.errors import CheckpointError
from qwendet.files import sha256_of_file
from qwendet.loading.lora import has_adapter, is_adapter, save_adapter
from qwendet.loading.manifest import (
    COORDINATES,
    HEAD_WEIGHTS,
    Manifest,
    ParameterRecord,
    files_of,
    write_manifest,
)
from qwendet.loading.processor import ImageTextProcessor, save_processor
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.spread import fill, whole

VERSIONED = ("torch", "transformers", "safetensors", "pillow", "numpy")


def save_checkpoint(
    folder: Path,
    detector: Qwen25VLWithDetection,
    processor: ImageTextProcessor,
    config: Config,
    *,
    step: int,
    attn_implementation: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    max_shard_size: str = "5GB",
    with_vlm: bool = True,
) -> None:
    """Write a model into an existing, empty folder (see :func:`qwendet.files.atomic_folder`).

    Args:
        folder: where to write.
        detector: the model.
        processor: its processor.
        config: the resolved config, labels included.
        step: optimizer steps done.
        attn_implementation: attention that it was trained with; ``None`` is the config's.
        weights: all tensors by name, gathered from the processes that share the model, if they do.
        max_shard_size: most bytes of a weight file, as in ``5GB``.
        with_vlm: ``False`` leaves out the base model's weights, for a reader who has them in memory.
    """
    lora = config.model.lora
    state = detector.state_dict() if weights is None else weights
    if lora is not None:
        save_adapter(part_of(state, "vlm."), lora, processor.family, folder)
    elif with_vlm:
        vlm = None if weights is None else part_of(_without_ties(weights, detector), "vlm.")
        detector.vlm.save_pretrained(folder, state_dict=vlm, max_shard_size=max_shard_size)
    else:
        detector.vlm.config.save_pretrained(folder)
        detector.vlm.generation_config.save_pretrained(folder)
    save_processor(processor, folder)
    if detector.head is not None:
        head = part_of(state, "head.") | detector.head.constants()
        stored = {name: tensor.contiguous() for name, tensor in head.items()}
        (folder / HEAD_WEIGHTS).parent.mkdir()
        safetensors.torch.save_file(stored, folder / HEAD_WEIGHTS, metadata={"format": "pt"})
    manifest = Manifest(
        config=config,
        head=None if detector.head is None else detector.head.shape,
        min_pixels=processor.image_processor.size["shortest_edge"],
        max_pixels=processor.image_processor.size["longest_edge"],
        attn_implementation=attn_implementation or config.model.attn_implementation,
        dtype=config.model.dtype,
        parameters=describe_parameters(detector, state),
        files={name: sha256_of_file(folder / name) for name in files_of(folder)},
        versions={"python": platform.python_version()} | {name: version(name) for name in VERSIONED},
        step=step,
        family=processor.family.model_type,
        coordinates=COORDINATES[processor.family.frame],
    )
    write_manifest(folder, manifest)


def base_weights(detector: Qwen25VLWithDetection) -> dict[str, Tensor]:
    """The base model's tensors by the names that its files give them; no copies, no adapters."""
    own = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in detector.vlm.state_dict().items()
        if not is_adapter(name)
    }
    weights: dict[str, Tensor] = revert_weight_conversion(detector.vlm, own)
    return weights


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` as ``float32``."""
    return str(dtype).removeprefix("torch.")


def part_of(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a part of the detector, by their names in it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _without_ties(weights: Mapping[str, Tensor], detector: Qwen25VLWithDetection) -> dict[str, Tensor]:
    """Gathered weights without the second name of a tied one, which is a tensor of its own there."""
    names = {name for name, _ in detector.named_parameters(remove_duplicate=False)}
    second_names = names - {name for name, _ in detector.named_parameters()}
    return {name: tensor for name, tensor in weights.items() if name not in second_names}


def describe_parameters(
    detector: Qwen25VLWithDetection, weights: Mapping[str, Tensor] | None = None
) -> dict[str, ParameterRecord]:
    """Shape, dtype and hash of every parameter that a checkpoint holds; tied ones count once."""
    state = detector.state_dict() if weights is None else weights
    whole = {name: state[name] for name in stored_parameters(detector)}
    return {
        name: ParameterRecord(tuple(tensor.shape), dtype_name(tensor.dtype), sha256_of_tensor(tensor))
        for name, tensor in whole.items()
    }


def stored_parameters(detector: Qwen25VLWithDetection) -> dict[str, Tensor]:
    """The parameters that a checkpoint holds: all of them, or of an adapter those beside the base."""
    without_base = has_adapter(detector)
    return {
        name: tensor
        for name, tensor in detector.named_parameters()
        if not without_base or is_adapter(name) or name.startswith("head.")
    }


def sha256_of_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values, row by row; of one that is spread, to be called on all its processes."""
    flat = whole(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def verify_parameters(detector: Qwen25VLWithDetection, manifest: Manifest, folder: Path) -> None:
    """Compare names, shapes and, unless the type was narrowed, the bytes of all parameters."""
    found = stored_parameters(detector)
    has_head = detector.head is not None
    wanted = {
        name: own for name, own in manifest.parameters.items() if has_head or not name.startswith("head.")
    }
    for name in sorted(set(found) ^ set(wanted)):
        state = "unexpected" if name in found else "missing"
        raise CheckpointError(f"the parameter {name} is {state}", str(folder), "take another checkpoint")
    for name, record in wanted.items():
        if tuple(found[name].shape) != record.shape or _differs(found[name], record):
            what = f"the parameter {name} is not the one that was saved"
            raise CheckpointError(what, str(folder), "copy the checkpoint again")


def _differs(tensor: Tensor, record: ParameterRecord) -> bool:
    stored = getattr(torch, record.dtype, None)
    if not isinstance(stored, torch.dtype):
        return True
    is_exact = torch.promote_types(tensor.dtype, stored) == tensor.dtype  # same type, or a wider one
    return is_exact and sha256_of_tensor(tensor.to(stored)) != record.sha256


def load_head_weights(detector: Qwen25VLWithDetection, folder: Path) -> None:
    """Load the head's weights, every one of them and no other."""
    head, path = detector.head, folder / HEAD_WEIGHTS
    assert head is not None
    if not path.is_file():  # one from before the head had a folder of its own
        path = folder / path.name
    fill(dict(head.named_parameters()) | head.constants(), path.parent, path.name, "head")


def load_base_weights(detector: Qwen25VLWithDetection, folder: Path) -> None:
    """Load the base model's weights of a checkpoint into a model that is there, each once."""
    own = revert_weight_conversion(detector.vlm, dict(detector.vlm.named_parameters()))
    fill(own, folder, "model*.safetensors", "model")
