"""A checkpoint as a plain Hugging Face directory: merged, sharded, in one type, reloaded before it is done.

CHECKPOINT ─► load ─► merge the adapter ─► cast ─► OUT (beside its place) ─► load it ─► compare ─► rename
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from qwendet.config.contradictions import AUTOCAST_OF
from qwendet.config.schema import Config
from qwendet.encoding.image_tokens import settings_folder
from qwendet.encoding.prompts import conversation, request_text
from qwendet.errors import CheckpointError, ConfigError
from qwendet.export.model_card import render_card
from qwendet.export.serving import SERVING, serving_of
from qwendet.families.licence import licence_of
from qwendet.files import atomic_folder
from qwendet.loader import Bundle, config_of_checkpoint, load
from qwendet.loading.checkpoint import dtype_name, save_checkpoint
from qwendet.loading.lora import merge_adapter
from qwendet.loading.manifest import Manifest, files_of, read_manifest
from qwendet.model.precision import float32_or_wider

FINAL = "final"
CARD = "README.md"
# Merging adds what was multiplied apart: relative error of the logits that rounding explains.
MERGE_NOISE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass(frozen=True)
class ExportSummary:
    """What was exported.

    Attributes:
        merge_error: relative difference of the logits before and after merging; ``None`` without an adapter.
        launch: the line that starts vLLM on it.
    """

    output: Path
    num_parameters: int
    dtype: str
    files: tuple[str, ...]
    merge_error: float | None
    launch: str


def export(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
) -> ExportSummary:
    """Write a checkpoint as a directory that transformers and vLLM load without qwendet.

    Args:
        checkpoint: a checkpoint with a manifest, an adapter's or a whole one.
        output: a directory that is not there yet.
        dtype: type of all weights but the head's, which are float32; ``None`` takes ``model.dtype``, which
            servers compute in, for trained and frozen ones alike.
        max_shard_size: most bytes of a weight file, as in ``5GB``.
    """
    if output.exists():
        raise ConfigError("there is something already", str(output), "remove it, or give another directory")
    manifest = read_manifest(checkpoint)
    wanted = dtype or manifest.dtype
    bundle = load(_loadable(config_of_checkpoint(checkpoint), manifest.dtype, wanted), for_inference=True)
    merge_error = None if bundle.config.model.lora is None else _merge(bundle)
    bundle = _as_exported(bundle, wanted)
    serving = serving_of(bundle, output.resolve().name, _licence(checkpoint, manifest, bundle))
    with atomic_folder(output) as folder:
        card = render_card(manifest, serving, _metrics_of(checkpoint))
        (folder / CARD).write_text(card, encoding="utf-8")
        record = json.dumps(serving, indent=1, ensure_ascii=False)
        (folder / SERVING).write_text(record + "\n", encoding="utf-8")
        save_checkpoint(
            folder,
            bundle.detector,
            bundle.processor,
            bundle.config,
            attn_implementation=manifest.attn_implementation,
            step=manifest.step,
            max_shard_size=max_shard_size,
        )
        _require_same(folder, bundle)
    return ExportSummary(
        output=output,
        num_parameters=sum(parameter.numel() for parameter in bundle.detector.parameters()),
        dtype=wanted,
        files=tuple(name for name in files_of(output) if name.endswith(".safetensors")),
        merge_error=merge_error,
        launch=serving["vllm"].replace(" . ", f" {shlex.quote(str(output))} ", 1),
    )


def _licence(checkpoint: Path, manifest: Manifest, bundle: Bundle) -> str:
    """The licence that the checkpoint's own card names, as an export's does, else its base's."""
    family, base = bundle.processor.family, manifest.config.model
    return licence_of("", checkpoint, family) or licence_of(base.path, settings_folder(base), family)


def _loadable(config: Config, trained: str, wanted: str) -> Config:
    """The checkpoint's config on the CPU, in the wider of both types, its base in full precision."""
    if trained != wanted:  # the products too are then of the type that is asked for
        config = config.model_copy(update={"train": config.train.model_copy(update={"autocast": "auto"})})
    wider = torch.promote_types(getattr(torch, trained), getattr(torch, wanted))
    lora = config.model.lora
    update: dict[str, Any] = {"device": "cpu", "dtype": dtype_name(wider)}
    if config.model.attn_implementation == "flash_attention_2":
        update["attn_implementation"] = "sdpa"
    if lora is not None:
        update["lora"] = lora.model_copy(update={"load_in_4bit": False})
    return config.model_copy(update={"model": config.model.model_copy(update=update)})


def _merge(bundle: Bundle) -> float:
    """Merge the adapter; returns the relative difference of the logits that it made."""
    before = _logits(bundle)
    merge_adapter(bundle.detector.vlm)
    error = float((_logits(bundle) - before).norm() / before.norm())
    allowed = MERGE_NOISE[dtype_name(bundle.detector.dtype)]
    if not error <= allowed:
        raise CheckpointError(
            f"the merged model's logits differ by {error:.1e} of their size, expected at most {allowed:.0e}",
            bundle.config.model.path,
            "export with --dtype float32",
        )
    return error


@torch.inference_mode()
def _logits(bundle: Bundle) -> Tensor:
    """Logits of the answer's first token for a picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (84, 112, 3), dtype=np.uint8)
    request = request_text(bundle.config.data.request, bundle.request_labels)
    messages = conversation(bundle.config.data.system_prompt or "", [request], [])
    text = bundle.processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    inputs = bundle.processor(text=[text], images=[Image.fromarray(pixels)], return_tensors="pt")
    with bundle.detector.computing():
        logits: Tensor = bundle.detector.vlm(**inputs, logits_to_keep=1).logits.float()
    return logits


def _as_exported(bundle: Bundle, dtype: str) -> Bundle:
    """The model in its final type but for the head, without an adapter, answering greedily by default."""
    detector, config = bundle.detector, bundle.config
    if dtype != config.model.dtype:
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"autocast": AUTOCAST_OF[dtype]})}
        )
    detector.vlm.to(getattr(torch, dtype))
    if detector.head is not None:
        detector.head.to(float32_or_wider(detector.vlm.dtype))
    tokenizer = bundle.processor.tokenizer
    bundle.detector.vlm.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=sorted({tokenizer.eos_token_id, tokenizer.pad_token_id}),
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=bundle.config.infer.max_new_tokens,
    )
    model = config.model.model_copy(update={"dtype": dtype, "lora": None})
    return replace(bundle, config=config.model_copy(update={"model": model}))


def _metrics_of(checkpoint: Path) -> dict[str, float]:
    """What the run measured with this model: ``metrics.json`` beside ``final``; empty if there is none."""
    path = checkpoint.resolve().parent / "metrics.json"
    if checkpoint.resolve().name != FINAL or not path.is_file():
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in metrics.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the metrics cannot be read ({error})", str(path), "remove the file"
        ) from error


def _require_same(folder: Path, bundle: Bundle) -> None:
    """Load what was written, and compare all of it with the model in memory."""
    reloaded = load(config_of_checkpoint(folder), for_inference=True)
    wanted, found = (
        model.state_dict() | ({} if model.head is None else model.head.constants())
        for model in (bundle.detector, reloaded.detector)
    )
    for name in wanted.keys() | found.keys():
        if name not in wanted or name not in found or not torch.equal(wanted[name], found[name].cpu()):
            raise CheckpointError(
                f"{name} is not what was written", str(folder), "see that the disk is sound, and export again"
            )
