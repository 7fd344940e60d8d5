"""Peak memory of a training step on one device, estimated on the meta device, without a weight.

    weights        every parameter in its type (4 bits where the base is kept so)
    optimizer      its state of the trained ones
    step           gradients, and what the optimizer needs while it steps
    activations    what autograd keeps: measured by running one layer of each kind on meta tensors
    logits         the chunk of lm_head's output that exists at a time, and the gradient of lm_head

The peak is weights and optimizer, and the larger of two moments: the end of the forward pass, or the
optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qwendet.config import Config, TrainConfig
from qwendet.loader import NEW_HEAD
from qwendet.model.cross_entropy import CHUNK_ROWS
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import DetectionHead, HeadShape
from qwendet.model.lora import add_adapter
from qwendet.parameter_groups import freeze_groups

FUSED = "qwendet_meta"
GIB = 2**30
EIGHT_BIT_STATE = 2  # bytes a trained parameter
FOUR_BIT = 0.52  # bytes a weight, with its share of the scales
LABELS, LABEL_TOKENS = 16, 4
TEXT_TOKENS = 512  # of an image's request and answer, in `largest_workload`


@dataclass(frozen=True)
class Workload:
    """What one forward pass of a device is given.

    Attributes:
        batch_size: samples.
        patches: vision patches of a sample, all its images.
        student_grid: rows and columns of patches of the student image.
        tokens: tokens of a sample, padding included.
        supervised: tokens of a sample that have a loss.
    """

    batch_size: int
    patches: int
    student_grid: tuple[int, int]
    tokens: int
    supervised: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    step: int

    @property
    def peak(self) -> int:
        """At the end of the forward pass, or while the optimizer steps."""
        return self.weights + self.optimizer + max(self.activations + self.logits, self.step)


def largest_workload(config: Config, vlm_config: Any, max_pixels: int) -> Workload:
    """What a batch of the largest samples that the config lets through is.

    Args:
        config: the config.
        vlm_config: config of the published model.
        max_pixels: the processor's limit.
    """
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
        tokens=min(data.max_tokens, images * (patches // merge**2 + TEXT_TOKENS)),
        supervised=min(data.max_tokens, images * TEXT_TOKENS),
    )


def estimate_memory(
    config: Config, vlm_config: Qwen2_5_VLConfig, dtype: torch.dtype, work: Workload
) -> MemoryEstimate:
    """Estimate what a training step takes on one device.

    Args:
        config: the config.
        vlm_config: config of the published model.
        dtype: type of the weights.
        work: what a forward pass is given.
    """
    detector = _build(config, vlm_config, dtype)
    weights = sum(_bytes_of_weight(name, p, config) for name, p in detector.named_parameters())
    trained = [p for p in detector.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    accumulates = config.train.gradient_accumulation_steps > 1
    return MemoryEstimate(
        weights=int(weights),
        optimizer=_optimizer_state(config.train, trained),
        gradients=gradients,
        activations=_activations(detector, config, dtype, work) + (gradients if accumulates else 0),
        logits=_logits(detector, dtype, work),
        step=gradients + _step_temporaries(config.train, trained),
    )


def _build(config: Config, vlm_config: Qwen2_5_VLConfig, dtype: torch.dtype) -> Qwen25VLWithDetection:
    """The model without weights, its parts frozen as training would."""
    settings: Any = vlm_config  # whose parts are annotated as possibly absent
    with _fused_attention(), torch.device("meta"):
        vlm = Qwen2_5_VLForConditionalGeneration._from_config(
            vlm_config, dtype=dtype, attn_implementation=FUSED
        )
        head = None
        if config.detection.enabled:
            sizes = {name: getattr(config.detection, name) or default for name, default in NEW_HEAD.items()}
            vision, text = settings.vision_config.hidden_size, settings.text_config.hidden_size
            head = DetectionHead(HeadShape(vision, text, **sizes), config.detection.num_queries).to(dtype)
        if config.model.lora is not None:
            add_adapter(vlm, config.model.lora, seed=0)
    detector = Qwen25VLWithDetection(vlm, head)
    freeze_groups(detector, config.train.group_learning_rates())
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
    if train.optimizer == "adafactor":  # a row and a column of each matrix
        return sum(sum(p.shape[-2:]) * 4 if p.ndim > 1 else p.numel() * 4 for p in trained)
    return sum(2 * p.numel() * p.element_size() for p in trained)


def _step_temporaries(train: TrainConfig, trained: list[nn.Parameter]) -> int:
    """What the optimizer makes while it steps: for all parameters at once, or for the largest."""
    sizes = [p.numel() * p.element_size() for p in trained]
    if not sizes:
        return 0
    return max(sizes) * 2 if train.optimizer != "adamw_torch" else max(sizes) * 3


# Activations


def _activations(detector: Qwen25VLWithDetection, config: Config, dtype: torch.dtype, work: Workload) -> int:
    """Bytes that autograd keeps at the end of the forward pass."""
    computed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.autocast, dtype)
    detector.to(computed)
    detector.train()
    recompute = config.model.gradient_checkpointing
    vlm, total_patches = detector.vlm, work.batch_size * work.patches
    visual, language = vlm.model.visual, vlm.model.language_model
    settings: Any = vlm.config
    vision, text_size = settings.vision_config, settings.text_config.hidden_size
    with _fused_attention():
        seen = torch.empty(
            total_patches, vision.hidden_size, dtype=computed, device="meta", requires_grad=True
        )
        turns = torch.empty(total_patches, vision.hidden_size // vision.num_heads, device="meta")
        lengths = torch.tensor([0, total_patches], dtype=torch.int32)
        block = _kept(lambda: visual.blocks[0](seen, cu_seqlens=lengths, position_embeddings=(turns, turns)))
        merger = _kept(lambda: visual.merger(seen))
        read = torch.empty(
            work.batch_size, work.tokens, text_size, dtype=computed, device="meta", requires_grad=True
        )
        positions = torch.zeros(3, work.batch_size, work.tokens, dtype=torch.int64, device="meta")
        rotary = language.rotary_emb.to("meta")(read, positions)
        layer = _kept(lambda: language.layers[0](read, position_embeddings=rotary))
        head = _kept(lambda: _detect(detector, computed, work)) if detector.head is not None else 0
    size = torch.finfo(computed).bits // 8
    num_blocks, num_layers, states = len(visual.blocks), len(language.layers), read.numel() * size
    if not any(p.requires_grad for p in vlm.parameters()):  # the head alone: nothing else to go back through
        return head
    if not any(p.requires_grad for p in visual.parameters()):
        block = merger = num_blocks = 0
    if not recompute:
        return num_blocks * block + merger + num_layers * layer + head + 3 * states
    # Layers keep their input; all of one is there when the head's part is gone already.
    inputs = num_blocks * seen.numel() * size + num_layers * states
    return inputs + merger + 3 * states + max(head, block, layer)


def _detect(detector: Qwen25VLWithDetection, dtype: torch.dtype, work: Workload) -> Any:
    assert detector.head is not None
    shape, (rows, columns) = detector.head.shape, work.student_grid

    def states(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta", requires_grad=True)

    return detector.head(
        states(work.batch_size, rows, columns, shape.vision_size),
        states(work.batch_size, rows, columns, shape.text_size),
        torch.ones(work.batch_size, rows, columns, dtype=torch.bool, device="meta"),
        states(LABELS, LABEL_TOKENS, shape.text_size),
        torch.ones(LABELS, LABEL_TOKENS, dtype=torch.bool, device="meta"),
    )


def _kept(compute: Callable[[], Any]) -> int:
    """Bytes of what autograd keeps of a computation, parameters apart, each storage once."""
    kept: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = compute()
        del result
    return sum(storage.nbytes() for storage in kept.values())


class _Attention(torch.autograd.Function):
    """Fused attention: keeps queries, keys, values, its output, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        row_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, row_sums)
        return output


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:  # with a mask of padding, keys and values are repeated
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    output: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Have transformers attend by :func:`_attend`: on meta tensors torch would choose the plain way."""
    AttentionInterface.register(FUSED, _attend)
    yield


def _logits(detector: Qwen25VLWithDetection, dtype: torch.dtype, work: Workload) -> int:
    """The logits of a chunk and their exponentials, and the gradient of lm_head if it trains."""
    weight = detector.vlm.get_output_embeddings().weight
    rows = min(work.batch_size * work.supervised, CHUNK_ROWS["cuda"])
    of_weight = weight.numel() * weight.element_size() if weight.requires_grad else 0
    return int(rows * weight.shape[0] * 8 + of_weight)
