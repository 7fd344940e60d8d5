"""Vision tower and head as ONNX graphs for images of one size, each held against torch by onnxruntime.

    pixel_values ─► vision_tower.onnx ─► patches, image_embeds ─► (the language model, elsewhere) ─► context
    patches, context, label_embeds, label_mask ─► detection_head.onnx ─► logits, boxes_cxcywh

The language model stands between the two: it reads ``image_embeds``, and the head reads its hidden
states at the image's tokens. The vision tower's windows depend on the image's size by loops that no
exporter follows, so a graph is made by tracing and holds the windows of one size as constants.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qwendet.encoding.patch_order import raster_to_flat
from qwendet.errors import CheckpointError, ConfigError, EnvironmentLacksError
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import DetectionHead

OPSET = 18
PACKAGES = ("onnx", "onnxruntime")
NOISE = 1e-3
NUM_LABELS, LABEL_TOKENS = 3, 4  # of the traced example; the graph takes any
DYNAMIC_AXES = {
    "label_embeds": {0: "labels", 1: "tokens"},
    "label_mask": {0: "labels", 1: "tokens"},
    "logits": {2: "labels"},
}


@dataclass(frozen=True)
class GraphCheck:
    """A graph that was written.

    Attributes:
        file: its file.
        error: largest difference between onnxruntime's and torch's outputs, relative to their size.
    """

    file: str
    error: float


class VisionTower(nn.Module):
    """Pixels of one image to patches in 2-D order and image tokens."""

    def __init__(self, detector: Qwen25VLWithDetection, rows: int, columns: int) -> None:
        super().__init__()
        self.detector = detector
        self.grid = (1, rows, columns)
        merge_size = detector.config.vision_config.spatial_merge_size
        self.raster = torch.from_numpy(raster_to_flat(rows, columns, merge_size))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """``(P, dim)`` to ``(1, rows, columns, vision)`` and ``(P / merge², text)``."""
        patches, images = self.detector.see(pixel_values, torch.tensor([self.grid]))
        return patches[self.raster][None], torch.cat(images.pooler_output)


class Head(nn.Module):
    """The head's last stage, with every cell of the grid in use."""

    def __init__(self, head: DetectionHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, patches: Tensor, context: Tensor, label_embeds: Tensor, label_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits ``(1, Q, C)`` and boxes ``(1, Q, 4)``, cxcywh in the unit square."""
        mask = torch.ones(patches.shape[:3], dtype=torch.bool)
        logits, boxes, _ = self.head(patches, context, mask, label_embeds, label_mask).final()
        return logits, boxes


def export_graphs(
    detector: Qwen25VLWithDetection, folder: Path, size: tuple[int, int]
) -> tuple[GraphCheck, ...]:
    """Write both graphs in float32.

    Args:
        detector: a model with a head; it is cast to float32.
        folder: where to write; made if it is absent.
        size: width and height of the images as the model sees them, pixels.

    Raises:
        EnvironmentLacksError: without the packages that it takes.
        ConfigError: for a size that is not a multiple of an image token's side.
        CheckpointError: if onnxruntime computes something else than torch.
    """
    _require_packages()
    assert detector.head is not None
    vision = detector.config.vision_config
    rows, columns = _grid(size, vision.patch_size, vision.spatial_merge_size)
    detector.float().eval()
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    pixel_size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(rows * columns, pixel_size, generator=generator)
    shape = detector.head.shape
    head_inputs = (
        torch.randn(1, rows, columns, shape.vision_size, generator=generator),
        torch.randn(1, rows, columns, shape.text_size, generator=generator),
        torch.randn(NUM_LABELS, LABEL_TOKENS, shape.text_size, generator=generator),
        torch.ones(NUM_LABELS, LABEL_TOKENS, dtype=torch.bool),
    )
    tower_names = ("pixel_values",), ("patches", "image_embeds")
    head_names = ("patches", "context", "label_embeds", "label_mask"), ("logits", "boxes_cxcywh")
    return (
        _export(VisionTower(detector, rows, columns), (pixels,), tower_names, folder / "vision_tower.onnx"),
        _export(Head(detector.head), head_inputs, head_names, folder / "detection_head.onnx"),
    )


def _require_packages() -> None:
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise EnvironmentLacksError(
            f"ONNX needs the package {' and '.join(lacking)}", "--head onnx", "pip install 'qwendet[onnx]'"
        )


def _grid(size: tuple[int, int], patch_size: int, merge_size: int) -> tuple[int, int]:
    width, height = size
    side = patch_size * merge_size
    if min(size) < side or width % side or height % side:
        nearest = "x".join(str(max(side, round(length / side) * side)) for length in size)
        raise ConfigError(
            f"{width}x{height} is no size of the model's images: sides are multiples of {side}",
            "--image-size",
            f"the nearest is {nearest}",
        )
    return height // patch_size, width // patch_size


@torch.no_grad()
def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[Sequence[str], Sequence[str]], path: Path
) -> GraphCheck:
    """Trace a module, write it, and compare."""
    wanted = module(*inputs)
    with warnings.catch_warnings():
        # That loops over sizes become constants, and that tracing is the older of torch's two ways, is known.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            inputs,
            path,
            input_names=names[0],
            output_names=names[1],
            dynamic_axes={
                name: axes for name, axes in DYNAMIC_AXES.items() if name in (*names[0], *names[1])
            },
            opset_version=OPSET,
            dynamo=False,
        )
    error = _difference(path, inputs, wanted)
    if not error <= NOISE:
        raise CheckpointError(
            f"onnxruntime differs from torch by {error:.1e}", path.name, "use qwendet infer"
        )
    return GraphCheck(path.name, error)


def _difference(path: Path, inputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
    found = session.run(None, feeds)
    return max(
        float(np.abs(output - tensor.numpy()).max() / np.abs(tensor.numpy()).max())
        for output, tensor in zip(found, wanted, strict=True)
    )
