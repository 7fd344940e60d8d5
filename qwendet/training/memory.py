"""Peak memory of a training step on one device, estimated on fake tensors, without a weight.

    weights        every parameter in its type (4 bits where the base is kept so)
    optimizer      its state of the trained ones, and their average (``train.ema``)
    gradients      of the trained ones
    activations    what autograd keeps: one layer of each kind is run on fake tensors
    logits         the chunk of lm_head's output that exists at a time
    output         as large as lm_head: its gradient is made in the forward pass, and scaled in the backward

Under FSDP2 the first three are spread over processes, and what is computed with is gathered.
Weights and optimizer are always there. The peak is theirs and the largest of four moments: the logits of a
chunk; the way back through head and lm_head; through the layers; the optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from qwendet.config.contradictions import AUTOCAST_OF
from qwendet.config.schema import Config, TrainConfig
from qwendet.families.family import FULL_ATTENTION, Family, decoder_layer_types
from qwendet.loading.checkpoint import dtype_name
from qwendet.loading.lora import add_adapter
from qwendet.model.attention import attention_by_part, lengths_in_order
from qwendet.model.build_head import head_shape
from qwendet.model.cross_entropy import CHUNK_ROWS
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import DetectionHead
from qwendet.model.precision import AUTOCAST, GROUPS, float32_or_wider, group_of, trained_in_float32
from qwendet.training.ema import is_averaged
from qwendet.training.fake_layers import Footprint, footprint
from qwendet.training.param_groups import freeze_groups, parameter_groups

GIB = 2**30
EIGHT_BIT_STATE = 2  # bytes a trained parameter
FOUR_BIT = 0.52  # bytes a weight, with its share of the scales
LABELS, LABEL_TOKENS = 16, 4
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
TEXT_TOKENS = 512  # of an image's request, with so many labels, and answer, in `largest_workload`


@dataclass(frozen=True)
class Workload:
    """What one forward pass of a device is given.

    Attributes:
        student_grid: rows and columns of patches of the student image.
        supervised: tokens of a sample that have a loss.
        token_sets: 2 if some are a demonstration's and some the student's, else 1.
        labels: different ones of the batch, which the head scores.
    """

    batch_size: int
    patches: int
    student_grid: tuple[int, int]
    tokens: int
    supervised: int
    token_sets: int = 1
    labels: int = LABELS


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device.

    Attributes:
        activations: at the end of the forward pass, the head's included.
        logits: of the chunk that exists at a time.
        moments: what there is besides weights and optimizer, by moment of the step.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    moments: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Weights, optimizer, and the largest of the moments."""
        return self.weights + self.optimizer + max(self.moments.values())


def largest_workload(config: Config, vlm_config: Any, max_pixels: int, num_labels: int = LABELS) -> Workload:
    """What a batch of the largest samples that the config lets through is; ``num_labels`` are in the set."""
    asked = min(num_labels, config.data.labels_per_request or num_labels)
    text_tokens = TEXT_TOKENS + max(0, asked - LABELS) * (LABEL_TOKENS + 1)
    vision, data = vlm_config.vision_config, config.data
    side, merge = vision.patch_size, vision.spatial_merge_size
    images = 1 + (data.num_teachers if data.teacher_ratio else 0)
    of_image = min(max_pixels // side**2, data.max_tokens * merge**2 // images)
    rows = math.isqrt(of_image) // merge * merge
    patches = rows * rows
    return Workload(
        batch_size=config.train.batch_size,
        patches=images * patches,
        student_grid=(rows, rows),
        tokens=min(data.max_tokens, images * (patches // merge**2 + text_tokens)),
        supervised=min(data.max_tokens, images * TEXT_TOKENS),
        token_sets=min(images, 2),
        labels=min(num_labels, config.train.batch_size * asked),
    )


def estimate_memory(
    config: Config,
    vlm_config: PreTrainedConfig,
    dtype: torch.dtype,
    work: Workload,
    device: str,
    shards: int = 1,
) -> MemoryEstimate:
    """Estimate what a training step takes on one device."""
    detector = _build(config, vlm_config, dtype)
    weights = sum(_bytes_of_weight(name, p, config) for name, p in detector.named_parameters())
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    gradients = {part: size // shards for part, size in _gradients(trained, detector.family).items()}
    gathered = _gathered(detector) if shards > 1 else 0
    optimizer = _optimizer_state(config.train, list(trained.values()))
    optimizer += sum(_bytes(p) for name, p in trained.items() if is_averaged(name, config.train.ema))
    temporaries = _step_temporaries(config, detector, device)
    computed = detector.autocast or dtype
    layers = measure_layers(detector, config, computed, work)
    logits = _logits(detector, computed, work, device)
    moments = _moments(config, detector, gradients, layers, logits, work, computed)
    return MemoryEstimate(
        weights=int(weights) // shards,
        optimizer=optimizer // shards,
        gradients=sum(gradients.values()),
        activations=layers.vision.kept + layers.language.kept + layers.head.kept,
        logits=logits,
        moments={name: size + gathered for name, size in moments.items()}
        | {"step": sum(gradients.values()) + temporaries // shards},
    )


def _gradients(trained: Mapping[str, nn.Parameter], family: Family) -> dict[str, int]:
    """Bytes of the gradients of each part."""
    sizes = dict.fromkeys(GROUPS, 0)
    for name, parameter in trained.items():
        sizes[group_of(name, family)] += _bytes(parameter)
    return sizes


def _gathered(detector: Qwen25VLWithDetection) -> int:
    """What each process has whole while it computes, though it is spread over them: weights and gradients.

    All that is in no layer, from the forward's beginning to the backward's end; a layer, and the next one,
    which is gathered meanwhile.
    """
    layers = [m for m in detector.modules() if type(m).__name__ in detector._no_split_modules]
    sizes = [sum(map(_with_gradient, layer.parameters())) for layer in layers]
    return sum(map(_with_gradient, detector.parameters())) - sum(sizes) + 2 * max(sizes)


def _with_gradient(parameter: nn.Parameter) -> int:
    return _bytes(parameter) * (2 if parameter.requires_grad else 1)


def _moments(
    config: Config,
    detector: Qwen25VLWithDetection,
    gradients: Mapping[str, int],
    layers: Layers,
    logits: int,
    work: Workload,
    computed: torch.dtype,
) -> dict[str, int]:
    """What there is besides weights and optimizer while a micro-batch is computed, in the order of a step."""
    vlm: Any = detector.vlm  # whose layers are annotated as modules of any kind
    output, embeddings = vlm.get_output_embeddings().weight, vlm.get_input_embeddings().weight
    of_output = output.numel() * computed.itemsize if output.requires_grad else 0
    # Autocast's copies of weights: until the forward pass ends, or, where nothing is recomputed, in `kept`.
    copies = _autocast_copies(vlm, computed) if config.model.gradient_checkpointing else 0
    of_cast = _bytes(output) if output.requires_grad and output.dtype != computed else 0
    of_embeddings = _bytes(embeddings) if embeddings.requires_grad else 0
    is_tied = output is embeddings
    trunk = layers.vision.kept + layers.language.kept
    before = sum(gradients.values()) if config.train.gradient_accumulation_steps > 1 else 0
    sums = work.token_sets * of_output
    after_output = max(before, gradients["head"]) + (of_cast or of_output)
    after_language = max(before, sum(gradients.values()) - gradients["vision"])
    return {
        "logits": before + trunk + copies + logits + sums,
        "head": before + trunk + layers.head.peak + sums,
        "output": max(before, gradients["head"]) + trunk + sums + of_output + of_cast,
        "language": after_output + trunk + layers.language.peak - layers.language.kept,
        "embeddings": after_language + layers.vision.kept + (of_embeddings if is_tied else 0),
        "vision": after_language + layers.vision.peak,
    }


def _autocast_copies(vlm: nn.Module, computed: torch.dtype) -> int:
    linear = [module.weight for module in vlm.modules() if isinstance(module, (nn.Linear, nn.Conv3d))]
    return sum(
        weight.numel() * computed.itemsize for weight in linear if weight.dtype == torch.float32 != computed
    )


def _build(config: Config, vlm_config: PreTrainedConfig, dtype: torch.dtype) -> Qwen25VLWithDetection:
    """The model without weights, its parts frozen as training would."""
    usual = config.model.attn_implementation
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(
            vlm_config,
            dtype=dtype,
            attn_implementation=attention_by_part("eager" if usual == "eager" else "sdpa"),
        )
        head = None
        if config.detection.enabled:
            shape = head_shape(config.detection, vlm_config)
            head = DetectionHead(shape, config.detection.num_queries).to(float32_or_wider(dtype))
        if config.model.lora is not None:
            add_adapter(vlm, config.model.lora, seed=0)
    given = config.train.autocast
    autocast = AUTOCAST_OF[dtype_name(dtype)] if given == "auto" else given
    detector = Qwen25VLWithDetection(vlm, head, AUTOCAST[autocast])
    family = detector.family
    freeze_groups(detector, family, config.train.group_learning_rates())
    in_float32 = trained_in_float32(config)
    for name, parameter in vlm.named_parameters():
        if family.part_of(name) in in_float32:
            parameter.data = parameter.data.to(float32_or_wider(dtype))
    return _on_a_fake_device(detector)


def _on_a_fake_device(detector: Qwen25VLWithDetection) -> Qwen25VLWithDetection:
    """The model with tensors that have a device, so that torch chooses attention and autocast as for it."""
    made: dict[Tensor, nn.Parameter] = {}  # tied ones are one
    for module in detector.modules():
        for name, own in module.named_parameters(recurse=False):
            if own not in made:
                made[own] = nn.Parameter(_input(*own.shape, dtype=own.dtype, trains=False), own.requires_grad)
            setattr(module, name, made[own])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _input(*buffer.shape, dtype=buffer.dtype, trains=False))
    return detector


def _bytes_of_weight(name: str, parameter: nn.Parameter, config: Config) -> float:
    lora = config.model.lora
    is_in_4bit = lora is not None and lora.load_in_4bit and parameter.ndim == 2 and "_proj." in name
    if is_in_4bit and "lora_" not in name:
        return parameter.numel() * FOUR_BIT
    return parameter.numel() * parameter.element_size()


def _optimizer_state(train: TrainConfig, trained: list[nn.Parameter]) -> int:
    if train.optimizer == "adamw_bnb_8bit":
        return sum(EIGHT_BIT_STATE * p.numel() for p in trained)
    if train.optimizer == "stable_adamw":  # two moments, and in half precision what was rounded away
        return sum((3 * 2 if p.element_size() == 2 else 2 * 4) * p.numel() for p in trained)
    if train.optimizer == "adafactor":  # a row and a column of each matrix
        return sum(sum(p.shape[-2:]) * 4 if p.ndim > 1 else p.numel() * 4 for p in trained)
    return sum(2 * p.numel() * p.element_size() for p in trained)


def _step_temporaries(config: Config, detector: Qwen25VLWithDetection, device: str) -> int:
    """What the optimizer makes while it steps: for a whole group at once, or for one parameter."""
    train = config.train
    if train.optimizer == "adamw_torch_fused":
        return 0
    groups = [
        [_bytes(parameter) for parameter in group["params"]]
        for group in parameter_groups(
            detector, detector.family, train.group_learning_rates(), train.weight_decay
        )
    ]
    if train.optimizer == "adamw_torch" and device == "cuda":  # torch takes a group's parameters together
        return max(map(sum, groups), default=0)
    return 2 * max((size for group in groups for size in group), default=0)


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()


# Activations


@dataclass(frozen=True)
class Layers:
    """What the parts of the model keep and need, all their layers together."""

    vision: Footprint
    language: Footprint
    head: Footprint


def measure_layers(
    detector: Qwen25VLWithDetection, config: Config, dtype: torch.dtype, work: Workload
) -> Layers:
    """Run one layer of each kind on fake tensors; the base model multiplies in ``dtype``."""
    detector.train()
    with detector.computing():
        vision = _vision(detector, dtype, work, config.model.gradient_checkpointing)
        language = _language(detector, config, dtype, work)
    head = Footprint() if detector.head is None else footprint(lambda: _detect(detector, work))
    return Layers(vision, language, head)


def _vision(
    detector: Qwen25VLWithDetection, dtype: torch.dtype, work: Workload, recompute: bool
) -> Footprint:
    visual, settings = detector.vlm.model.visual, detector.config.vision_config
    patches = work.batch_size * work.patches
    trains = any(
        p.requires_grad for module in (visual.patch_embed, visual.blocks) for p in module.parameters()
    )
    width = visual.blocks[0].attn.qkv.in_features  # configs name it differently
    seen = _input(patches, width, dtype=dtype, trains=trains)
    turns = _input(patches, width // settings.num_heads, dtype=torch.float32, trains=False)
    lengths = torch.tensor([0, patches], dtype=torch.int32)
    merger = footprint(lambda: visual.merger(seen))
    block = footprint(lambda: visual.blocks[0](seen, cu_seqlens=lengths, position_embeddings=(turns, turns)))
    if not any(p.requires_grad for p in visual.parameters()):
        return Footprint()
    if not trains:  # nothing to go back through but the merger
        return Footprint(merger.kept + _bytes(seen), merger.peak + _bytes(seen))
    return _stack([block] * len(visual.blocks), _bytes(seen), recompute, merger)


def _language(
    detector: Qwen25VLWithDetection, config: Config, dtype: torch.dtype, work: Workload
) -> Footprint:
    language, size = detector.vlm.model.language_model, detector.config.text_config.hidden_size
    batch, tokens, model = work.batch_size, work.tokens, config.model
    if not any(p.requires_grad for p in detector.vlm.parameters()):  # the head alone trains
        return Footprint()
    read = _input(batch, tokens, size, dtype=language.embed_tokens.weight.dtype, trains=True)
    with FAKE:
        rotary = language.rotary_emb(read, torch.zeros(3, batch, tokens, dtype=torch.int64))
    given: dict[str, Any] = {"position_embeddings": rotary}
    types = decoder_layer_types(detector.config.text_config)
    if model.attn_implementation in ("auto", "sdpa") and {*types} == {FULL_ATTENTION}:
        given["lengths"] = lengths_in_order([tokens] * batch, (batch, tokens))
    mask = _input(batch, 1, tokens, tokens, dtype=dtype, trains=False)
    kinds: dict[str, Footprint] = {}
    for layer, kind in zip(language.layers, types, strict=True):
        if kind not in kinds:
            is_masked = model.attn_implementation == "eager" and kind == FULL_ATTENTION
            own = given | ({"attention_mask": mask} if is_masked else {})
            kinds[kind] = footprint(partial(layer, read, **own))
    norm = footprint(lambda: language.norm(read))
    return _stack([kinds[kind] for kind in types], _bytes(read), model.gradient_checkpointing, norm)


def _stack(layers: Sequence[Footprint], of_input: int, recompute: bool, last: Footprint) -> Footprint:
    """Layers and what follows. Recomputed, they keep their inputs, and everything of one at a time."""
    if recompute:
        kept = (len(layers) + 1) * of_input + last.kept
        return Footprint(kept, kept + max(layer.peak for layer in layers))
    kept = of_input + sum(layer.kept for layer in layers) + last.kept
    return Footprint(kept, kept + max(each.peak - each.kept for each in (*layers, last)))


def _detect(detector: Qwen25VLWithDetection, work: Workload) -> Tensor:
    assert detector.head is not None
    dtype = detector.head.dtype
    shape, (rows, columns) = detector.head.shape, work.student_grid

    def states(*sizes: int) -> Tensor:
        return _input(*sizes, dtype=dtype, trains=True).clone()  # picked from the towers' outputs

    predictions = detector.head(
        states(work.batch_size, rows, columns, shape.vision_size),
        states(work.batch_size, rows, columns, shape.text_size),
        _input(work.batch_size, rows, columns, dtype=torch.bool, trains=False),
        states(work.labels, LABEL_TOKENS, shape.text_size),
        _input(work.labels, LABEL_TOKENS, dtype=torch.bool, trains=False),
        _input(work.batch_size, work.labels, dtype=torch.bool, trains=False),
    )
    result: Tensor = predictions.logits.float().sum() + predictions.boxes_cxcywh.float().sum()
    return result


def _input(*sizes: int, dtype: torch.dtype, trains: bool) -> Tensor:
    with FAKE:
        return torch.empty(sizes, dtype=dtype, requires_grad=trains)


def _logits(detector: Qwen25VLWithDetection, dtype: torch.dtype, work: Workload, device: str) -> int:
    """The logits of a chunk, and the cast weight; on a GPU float32 beside 16 bits, on a CPU tile by tile."""
    weight = detector.vlm.get_output_embeddings().weight
    rows = min(work.batch_size * work.supervised, CHUNK_ROWS[device])
    cast = 0 if weight.dtype == dtype else weight.numel() * dtype.itemsize
    of_word = dtype.itemsize if dtype.itemsize >= 4 or device == "cpu" else 4 + dtype.itemsize
    return cast + int(rows * weight.shape[0] * of_word)
