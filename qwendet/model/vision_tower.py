"""The vision tower as published, in fewer calls: patches by one product, windows by one call for each length.

    windows of two images   64 64 32 64 16 | 64 64     patches each; every patch sees its own window
    in the tower            64 64 64 32 16 | 64 64     a run of one length: (windows, heads, length, d)

The published tower cuts its sequence into windows and calls attention for one after the other: 80 calls a
layer for four photographs, while a GPU waits for the host, and before each layer it asks the device for the
lengths. Here they are taken from the grids once, and no part of the tower is replaced for it: transformers
lets its caller give the indices, and lets an attention be registered. Without them it computes as published.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

BY_LENGTH = "qwendet_by_length"
"""Name of this attention among those of transformers."""
sdpa_attention_forward = AttentionInterface()["sdpa"]

Runs = list[tuple[int, int]]
"""Count and length of the segments of a sequence that see themselves alone, by runs of one length."""


class PatchEmbedding(nn.Conv3d):
    """A convolution whose kernel covers its whole input; its parameter keeps name and shape.

    Libraries for convolutions are slow at this one: by three on a CPU, and by far more on a GPU with some
    versions of cuDNN (pytorch issue 174051, transformers issue 45750).
    """

    def forward(self, patches: Tensor) -> Tensor:
        """``(P, channels, frames, rows, columns)`` of the kernel's size to ``(P, D)``."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def embed_by_product(projection: nn.Module) -> None:
    """Make a tower's convolution compute as a product; one that has been replaced is left as it is."""
    if type(projection) is nn.Conv3d:
        projection.__class__ = PatchEmbedding


def plan(visual: Any, grids: Tensor, device: torch.device) -> dict[str, Any]:
    """What the vision tower would find out from the grids in its forward, found on the host.

    Nothing is asked of the device, and no copy to it is waited for.

    Returns:
        Keyword arguments of the tower; ``window_index`` ``(tokens,)`` int64 is its order, if it has windows.
    """
    merge = visual.spatial_merge_size
    found: dict[str, Any] = {"position_ids": _sent(get_vision_position_ids(grids, merge), device)}
    if hasattr(visual, "num_grid_per_side"):  # learned positions, resampled to each grid
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        found |= {"interp_indices": _sent(indices, device), "interp_weights": _sent(weights, device)}
    frames = (grids[:, 1] * grids[:, 2]).repeat_interleave(grids[:, 0])
    segments = {"seqlen": frames}
    if hasattr(visual, "window_size"):
        index, segments["window_seqlen"] = _windows(visual, grids, frames)
        found["window_index"] = _sent(index, device)
    if visual.config._attn_implementation == BY_LENGTH:
        # One whole sequence in place of the published bounds; it stays on the host, which reads it.
        found |= {f"cu_{name}s": torch.tensor([0, int(frames.sum())]) for name in segments}
        full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
        of_frames, *of_windows = map(_runs, segments.values())
        blocks = enumerate(visual.blocks)
        found["segments"] = {b.attn: of_frames if layer in full else of_windows[0] for layer, b in blocks}
        return found
    for name, lengths in segments.items():
        bounds = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        found |= {f"cu_{name}s": _sent(bounds, device), f"max_{name}": int(lengths.max())}
    return found


def _windows(visual: Any, grids: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens in the order of windows, those of one length together in each frame; patches of each window."""
    index, bounds = get_vision_window_index(
        grids,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    windows = bounds.diff()
    frame = torch.arange(len(frames)).repeat_interleave(frames)[bounds[:-1].long()]
    order = (frame * (windows.max() + 1) + windows).argsort(stable=True)
    tokens = index.split((windows // visual.spatial_merge_size**2).tolist())
    return torch.cat([tokens[at] for at in order.tolist()]), windows[order]


def _sent(found: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; the host does not wait until it is there."""
    return found.to(device, non_blocking=True)


def _runs(lengths: Tensor) -> Runs:
    length, count = lengths.unique_consecutive(return_counts=True)
    return list(zip(count.tolist(), length.tolist(), strict=True))


def attention_by_length(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: dict[nn.Module, Runs] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention within segments, as transformers calls it; within the whole sequence where none are given.

    Queries, keys and values are ``(1, heads, S, d)``, the result ``(1, S, heads, d)`` and no weights;
    ``segments`` are those of each attention layer, from :func:`plan`.
    """
    if segments is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **settings
        )
        return result
    runs = segments[module]
    sizes = [count * length for count, length in runs]
    parts = (part[0].transpose(0, 1).split(sizes) for part in (query, key, value))
    attended = []
    for (count, _), *run in zip(runs, *parts, strict=True):
        q, k, v = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in run)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        attended.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)[None], None


AttentionInterface.register(BY_LENGTH, attention_by_length)
