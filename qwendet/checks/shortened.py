"""A few layers of a large model, so that it can be computed like a small one: exactly, and often.

    the model that would be trained        the model that numbers are compared on
    vision blocks   0 1 … 7 … 31    ─►     the first of each kind: 0 (windows), 7 (whole image)
    decoder layers  0 1 2 … 35      ─►     0 1
    merger, embeddings, lm_head, head ─►   as they are
    bfloat16, 4 bits, mixed         ─►     float32, compared in float64

What differs between training and inference differs in the first layers, too: padding, masks, positions,
caches and prompts know nothing of depth. Behind 36 layers in bfloat16 rounding would hide it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import safetensors.torch
import torch
from torch import nn

from qwendet.checks.subject import Subject, once
from qwendet.config.schema import Config
from qwendet.families.family import decoder_layer_types
from qwendet.files import atomic_folder
from qwendet.loader import Bundle
from qwendet.loading.checkpoint import base_weights
from qwendet.loading.lora import fingerprint
from qwendet.model.attention import exact_attention
from qwendet.model.detector import Qwen25VLWithDetection

DECODER_LAYERS = 2
"""At least; one does not show what the next makes of it."""
BYTES_A_PARAMETER = 20
"""One build in float64, which the other shares, a copy of it for another type, and that type."""
BYTES_FOR_STATES = 4 * 2**30


def exact(subject: Subject) -> Subject:
    """The subject itself where it is small; else one of the first layers of its model, made once."""
    return subject if subject.is_small else _few_layers(subject)


@once
def _few_layers(subject: Subject) -> Subject:
    return Shortened(subject)


class Shortened(Subject):
    """The samples of a subject and a model of a few of its layers, in float32."""

    def __init__(self, whole: Subject) -> None:
        super().__init__(whole.config, whole.folder / "shortened")
        self.is_small = True
        self.samples, self.encoded, self.collator = whole.samples, whole.encoded, whole.collator
        detector: Any = shortened(whole.bundle.detector)
        detector.autocast = None  # products are of the weights' own type
        detector.to(_device(detector), torch.float32)
        detector.vlm.set_attn_implementation(exact_attention(whole.bundle.config.model.attn_implementation))
        config = self._in_float32(whole.bundle.config, detector)
        self.bundle = Bundle(whole.bundle.processor, config, detector=detector)

    def _in_float32(self, config: Config, detector: Qwen25VLWithDetection) -> Config:
        """The config that builds the shortened model."""
        model, train = config.model, config.train.model_copy(update={"autocast": "none"})
        update: dict[str, Any] = {"dtype": "float32", "device": detector.device.type}
        if model.attn_implementation == "flash_attention_2":  # has no float32; this goes by masks, as it does
            update["attn_implementation"] = "eager"
        if model.lora is not None:
            base = self.folder / "base"
            _write_base(detector, base)
            found = {"base": str(base), "fingerprint": fingerprint(base), "load_in_4bit": False}
            update["lora"] = model.lora.model_copy(update=found)
        return config.model_copy(update={"model": model.model_copy(update=update), "train": train})


def shortened(detector: Qwen25VLWithDetection) -> Qwen25VLWithDetection:
    """A copy with a few layers of each tower, its config the one that such a model has."""
    visual, text = detector.vlm.model.visual, detector.vlm.model.language_model
    deepstack = list(getattr(visual, "deepstack_visual_indexes", ()))  # each feeds a decoder layer of its own
    windowed = getattr(visual, "fullatt_block_indexes", None)
    kinds = [windowed is None or index in windowed for index in range(len(visual.blocks))]
    blocks = sorted({*first_of_each(kinds), *deepstack[:1]})
    types = decoder_layer_types(text.config)
    layers = first_of_each(types, DECODER_LAYERS)
    with _only(visual, "blocks", blocks), _only(text, "layers", layers):
        copied = copy.deepcopy(detector)
    vars(copied).pop("forward", None)  # accelerate's, under autocast
    visual, text = copied.vlm.model.visual, copied.vlm.model.language_model
    vision_config, text_config = copied.config.vision_config, copied.config.text_config
    vision_config.depth, text_config.num_hidden_layers = len(blocks), len(layers)
    if windowed is not None:
        visual.fullatt_block_indexes = [at for at, index in enumerate(blocks) if kinds[index]]
        vision_config.fullatt_block_indexes = visual.fullatt_block_indexes
    if deepstack:
        visual.deepstack_visual_indexes = [blocks.index(deepstack[0])]
        vision_config.deepstack_visual_indexes = visual.deepstack_visual_indexes
        visual.deepstack_merger_list = visual.deepstack_merger_list[:1]
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = [types[index] for index in layers]
    for at, layer in enumerate(text.layers):
        for attention in ("self_attn", "linear_attn"):
            if hasattr(layer, attention):
                getattr(layer, attention).layer_idx = at  # its place in the cache
    _dequantise(copied.vlm)
    return copied


def first_of_each(kinds: Sequence[object], least: int = 1) -> list[int]:
    """Indices of the first layer of each kind, and of the first ones up to ``least``.

    Example:
        >>> first_of_each(["windows"] * 7 + ["whole image", "windows"]), first_of_each(["full"] * 36, least=2)
        ([0, 7], [0, 1])
    """
    firsts = {kinds.index(kind) for kind in kinds}
    others = (index for index in range(len(kinds)) if index not in firsts)
    return sorted([*firsts, *(index for index, _ in zip(others, range(least - len(firsts)), strict=False))])


@contextmanager
def _only(holder: nn.Module, name: str, kept: Sequence[int]) -> Iterator[None]:
    """Leave only some layers in a list until the block ends."""
    layers = getattr(holder, name)
    setattr(holder, name, nn.ModuleList(layers[index] for index in kept))
    try:
        yield
    finally:
        setattr(holder, name, layers)


def _dequantise(vlm: Any) -> None:
    """Make plain layers of those in 4 bits."""
    vars(vlm.config).pop("quantization_config", None)
    for name, module in list(vlm.named_modules()):
        weight = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is None:
            continue
        from peft.utils.integrations import dequantize_module_weight

        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(module))
        plain.bias = module.bias
        parent, _, own = name.rpartition(".")
        setattr(vlm.get_submodule(parent), own, plain)


def _device(detector: nn.Module) -> torch.device:
    """The model's own GPU if its free memory holds the builds; else the CPU."""
    own = next(detector.parameters()).device
    if own.type != "cuda":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(own)
    count = sum(parameter.numel() for parameter in detector.parameters())
    return own if free >= BYTES_A_PARAMETER * count + BYTES_FOR_STATES else torch.device("cpu")


def _write_base(detector: Qwen25VLWithDetection, folder: Any) -> None:
    """Write the shortened model without its adapter, as the directory that an adapter is put on."""
    vlm = detector.vlm
    weights = base_weights(detector)
    if vlm.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    with atomic_folder(folder) as staging:
        vlm.config.save_pretrained(staging)
        vlm.generation_config.save_pretrained(staging)
        own = {name: tensor.contiguous() for name, tensor in weights.items()}
        safetensors.torch.save_file(own, staging / "model.safetensors", metadata={"format": "pt"})
