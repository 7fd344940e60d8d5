"""THE loader: every command builds the model, the processor and the prompts here and nowhere else.

    Config ─► load(config, for_inference) ─► Bundle(detector, processor, config with everything resolved)

``for_inference`` changes the module's mode and where the weights may come from; it changes nothing
that alters an output.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, Qwen2_5_VLForConditionalGeneration

from qwendet.config import Config
from qwendet.data.collate import StandardDataCollator
from qwendet.data.encode import END_OF_TURN, Encoder
from qwendet.data.samples import SampleFile, check_label
from qwendet.errors import CheckpointError, ConfigError, DataError, EnvironmentLacksError, Problem
from qwendet.model.checkpoint import (
    Manifest,
    is_qwendet_checkpoint,
    load_head_weights,
    read_manifest,
    verify_files,
    verify_parameters,
)
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import DetectionHead, HeadShape
from qwendet.model.processor import ImageTextProcessor, load_processor
from qwendet.model.tiny import TINY_FOLDER, UNTRAINED, write_untrained

logger = logging.getLogger("qwendet")

MODEL_TYPE = "qwen2_5_vl"
# What transformers raises for absent, cut or malformed files.
UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
NEW_HEAD = {"hidden_size": 256, "num_layers": 3, "num_heads": 8}


@dataclass(frozen=True)
class Bundle:
    """A model and all that belongs to it.

    Attributes:
        detector: the model.
        processor: tokenizer, chat template and image processor.
        config: the config with label set, pixel limits, head sizes, dtype and attention resolved.
    """

    detector: Qwen25VLWithDetection
    processor: ImageTextProcessor
    config: Config

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set, in the order of request and class logits."""
        return self.config.data.labels or ()

    def encoder(self) -> Encoder:
        """What turns this model's samples into tokens and pixels."""
        return Encoder(self.processor, self.labels, self.config.data)

    def collator(self) -> StandardDataCollator:
        """What turns this model's encoded samples into a batch."""
        return StandardDataCollator(
            self.processor.tokenizer.pad_token_id,
            self.processor.image_processor.merge_size,
            self.encoder().label_tokens(),
        )


def load(config: Config, *, for_inference: bool) -> Bundle:
    """Build the model that a config describes.

    Args:
        config: its ``model.path`` is ``tiny``, a directory with or without a manifest, or a hub id.
        for_inference: evaluation mode on the config's device, and every weight must come from
            ``model.path``; for training a head that is not there yet is built with ``train.seed``.

    Returns:
        The model with everything that was left open resolved and recorded.

    Raises:
        CheckpointError: for missing, unexpected or changed weights.
        DataError: if there is no label set.
        EnvironmentLacksError: if a named device, dtype or attention is not to be had here.
    """
    source, manifest = _source(config)
    config = _resolve(config)
    vlm = _load_vlm(source, config)
    with _reading("tokenizer and image processor", source):
        processor = load_processor(source, config.data.min_pixels, config.data.max_pixels)
    _require_fitting(processor, vlm.config, source)
    head = _build_head(config, vlm.config, manifest, for_inference)
    if head is not None:
        head.to(vlm.dtype)
    detector = Qwen25VLWithDetection(vlm, head)
    if manifest is not None:
        if head is not None and manifest.head is not None:
            load_head_weights(detector, Path(source))
        elif manifest.head is not None:
            logger.info("head: detection.enabled is false, so the checkpoint's head is left out")
        verify_parameters(_known(detector, manifest), manifest, Path(source))
    bundle = Bundle(detector, processor, _record(config, detector, processor))
    if config.model.gradient_checkpointing and not for_inference:
        # The second name is the one before transformers 5.23.
        enable = getattr(vlm, "activation_checkpointing_enable", None) or vlm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if for_inference:
        detector.to(config.model.device)
        detector.eval()
    return bundle


def config_of_checkpoint(folder: Path) -> Config:
    """The config that a checkpoint was trained with, with ``model.path`` pointing at it.

    Dtype and attention stay those of the training; only the device is the machine's own choice.
    """
    config = read_manifest(folder).config
    model = config.model.model_copy(update={"path": str(folder), "device": "auto"})
    return config.model_copy(update={"model": model})


def _source(config: Config) -> tuple[str, Manifest | None]:
    """Where weights come from, and its verified manifest if it has one."""
    if config.model.path == UNTRAINED:
        return str(write_untrained()), None
    source = str(TINY_FOLDER) if config.model.path == "tiny" else config.model.path
    folder = Path(source)
    if not is_qwendet_checkpoint(folder):
        if folder.is_absolute() and not folder.is_dir():
            raise CheckpointError("there is no such model directory", source, "correct model.path")
        return source, None
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return source, manifest


def _resolve(config: Config) -> Config:
    """Fill in what ``auto`` and ``null`` leave open before the model is there, and say it."""
    device = _resolve_device(config.model.device)
    dtype = _resolve_dtype(config.model.dtype, device)
    attention = _resolve_attention(config.model.attn_implementation, device, dtype)
    logger.info("device: %s, dtype: %s, attention: %s", device, dtype, attention)
    model = {"device": device, "dtype": dtype, "attn_implementation": attention}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "data": config.data.model_copy(update={"labels": resolve_labels(config)}),
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
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn"
    return "" if dtype in ("bfloat16", "float16") else f"bfloat16 or float16, not {dtype}"


def resolve_labels(config: Config) -> tuple[str, ...]:
    """The label set: ``data.labels``, else the training samples' labels, sorted.

    Raises:
        DataError: if neither names a label.
    """
    if config.data.labels is not None:
        labels = tuple(check_label(label, "data.labels", label) for label in config.data.labels)
    elif config.data.train is not None:
        labels = labels_of(SampleFile(Path(config.data.train)), skip_bad=config.data.on_bad_sample == "skip")
    else:
        labels = ()
    if not labels:
        raise DataError(
            "there is no label to look for",
            "data.labels",
            "name them in data.labels, or give data.train with boxes",
        )
    return labels


def labels_of(samples: SampleFile, *, skip_bad: bool) -> tuple[str, ...]:
    """All labels of a sample file, sorted."""
    found: set[str] = set()
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except DataError:
            if skip_bad:
                continue
            raise
        for turn in (*sample.teachers, sample.student):
            found.update(item.desc for item in turn.objects)
    return tuple(sorted(found))


def _load_vlm(source: str, config: Config) -> Qwen2_5_VLForConditionalGeneration:
    """Load the published class, every weight by name; anything missing or left over is an error."""
    with _reading("model", source):
        model_type = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        if model_type != MODEL_TYPE:  # transformers would build a model of default size, tens of gigabytes
            raise ValueError(f"expected a config.json with model_type {MODEL_TYPE}, got {model_type}")
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            source,
            dtype=getattr(torch, config.model.dtype),
            attn_implementation=config.model.attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
            use_safetensors=True,
            trust_remote_code=False,
        )
    vlm: Qwen2_5_VLForConditionalGeneration
    vlm, report = loaded
    problems = [
        Problem(f"{len(keys)} {kind.replace('_', ' ')}, such as {sorted(map(str, keys))[0]}", source)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (keys := report[kind])
    ]
    if problems:
        raise CheckpointError.of(problems)
    return vlm


@contextmanager
def _reading(what: str, source: str) -> Iterator[None]:
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


def _require_fitting(processor: ImageTextProcessor, vlm_config: Any, source: str) -> None:
    """Refuse a tokenizer of another model, which transformers makes up where files are missing."""
    tokenizer = processor.tokenizer
    image_token_id = tokenizer.get_vocab().get("<|image_pad|>")
    if image_token_id != vlm_config.image_token_id or len(tokenizer) > vlm_config.text_config.vocab_size:
        raise CheckpointError(
            f"the tokenizer is not the model's: its <|image_pad|> is {image_token_id},"
            f" the model's {vlm_config.image_token_id}",
            source,
            "copy the tokenizer's files from the model's origin",
        )
    if tokenizer.eos_token != END_OF_TURN or not processor.chat_template:
        raise CheckpointError(
            f"expected a chat template and the end of turn {END_OF_TURN}, got {tokenizer.eos_token}",
            source,
            "copy tokenizer_config.json and the chat template from the model's origin",
        )


def _build_head(
    config: Config, vlm_config: Any, manifest: Manifest | None, for_inference: bool
) -> DetectionHead | None:
    if not config.detection.enabled:
        return None
    stored = manifest.head if manifest is not None else None
    if stored is None and for_inference:
        raise CheckpointError(
            "detection.enabled is true, but the checkpoint has no head: inference would use random weights",
            config.model.path,
            "set detection.enabled to false, or train a head first",
        )
    wanted = {name: getattr(config.detection, name) for name in NEW_HEAD}
    sizes = {
        name: value or (getattr(stored, name) if stored else NEW_HEAD[name]) for name, value in wanted.items()
    }
    shape = HeadShape(vlm_config.vision_config.hidden_size, vlm_config.text_config.hidden_size, **sizes)
    if stored is not None and shape != stored:
        raise CheckpointError(
            f"the config wants the head {shape}, the checkpoint has {stored}",
            config.model.path,
            "leave detection.hidden_size, num_layers and num_heads at null to take the checkpoint's",
        )
    if shape.hidden_size % shape.num_heads:
        raise ConfigError(
            f"the head's width {shape.hidden_size} cannot be split into {shape.num_heads} attention heads",
            "detection.num_heads",
            "choose a divisor of detection.hidden_size",
        )
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        return DetectionHead(shape, config.detection.num_queries)


def _known(detector: Qwen25VLWithDetection, manifest: Manifest) -> Qwen25VLWithDetection:
    """The part of the detector that the manifest can vouch for: all but a head built anew."""
    return detector if manifest.head is not None else Qwen25VLWithDetection(detector.vlm, None)


def _record(config: Config, detector: Qwen25VLWithDetection, processor: ImageTextProcessor) -> Config:
    """Write into the config what the loaded parts have settled."""
    size = processor.image_processor.size
    limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    update: dict[str, Any] = {"data": config.data.model_copy(update=limits)}
    if detector.head is not None:
        shape = detector.head.shape
        update["detection"] = config.detection.model_copy(
            update={name: getattr(shape, name) for name in NEW_HEAD}
        )
    return config.model_copy(update=update)
