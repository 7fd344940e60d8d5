"""Attention of the vision tower, one call for all windows of a length instead of one for each window.

    windows of a batch   64 64 32 64 16 64 …     patches each; every patch sees its own window
    in the tower         64 64 64 64 32 16 …     a run of one length is a batch: (windows, heads, length, d)

The published tower cuts its sequence into windows and calls attention for one after the other: 80 calls a
layer for four photographs, while a GPU waits for the host, and before each layer it asks the device for the
lengths. Here they are taken from the grids once. Nothing of the tower is replaced: transformers lets its
caller give the indices, and lets an attention be registered. Without them it computes as published.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Segments:
    """Which of S patches see each other: segments that follow one another, the shortest first.

    Attributes:
        runs: count and length of the segments of each length.
        order: ``(S,)`` int64, the tower's patches in the order of segments; ``None`` if they are in it.
        back: ``(S,)`` int64, its inverse.
    """

    runs: tuple[tuple[int, int], ...]
    order: Tensor | None = None
    back: Tensor | None = None


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
    if visual.config._attn_implementation == BY_LENGTH:
        return found | _by_length(visual, grids, frames, device)
    found |= {"cu_seqlens": _sent(_bounds(frames), device), "max_seqlen": int(frames.max())}
    if hasattr(visual, "window_size"):
        window_index, windows = _windows(visual, grids)
        found |= {
            "cu_window_seqlens": _sent(_bounds(windows), device),
            "max_window_seqlen": int(windows.max()),
        }
        found["window_index"] = _sent(window_index, device)
    return found


def _by_length(visual: Any, grids: Tensor, frames: Tensor, device: torch.device) -> dict[str, Any]:
    """Segments of each layer, and one whole sequence in place of the published bounds."""
    patches_a_token = visual.spatial_merge_size**2
    whole = torch.tensor([0, int(frames.sum())])  # stays on the host, which reads it
    tokens = torch.arange(len(frames)).repeat_interleave(frames // patches_a_token)
    if not hasattr(visual, "window_size"):
        of_frames = _gathered(frames, tokens, patches_a_token, device)
        return {"cu_seqlens": whole, "segments": {block.attn: of_frames for block in visual.blocks}}
    window_index, windows = _windows(visual, grids)
    window_index = window_index[windows.repeat_interleave(windows // patches_a_token).argsort(stable=True)]
    of_frames = _gathered(frames, tokens[window_index], patches_a_token, device)
    of_windows = Segments(_runs(windows))
    return {
        "window_index": _sent(window_index, device),
        "cu_seqlens": whole,
        "cu_window_seqlens": whole,
        "segments": {
            block.attn: of_frames if layer in visual.fullatt_block_indexes else of_windows
            for layer, block in enumerate(visual.blocks)
        },
    }


def _bounds(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def _windows(visual: Any, grids: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the tokens by windows, and the number of patches of each window."""
    index, bounds = get_vision_window_index(
        grids,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    return index, bounds.diff()


def _gathered(
    lengths: Tensor, segment_of_token: Tensor, patches_a_token: int, device: torch.device
) -> Segments:
    """Segments whose tokens stand in any order."""
    place = lengths.argsort(stable=True).argsort()
    order = place[segment_of_token].argsort(stable=True)
    if bool((order.diff() > 0).all()):
        return Segments(_runs(lengths))
    order = (order[:, None] * patches_a_token + torch.arange(patches_a_token)).flatten()
    return Segments(_runs(lengths), _sent(order, device), _sent(order.argsort(), device))


def _sent(found: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; the host does not wait until it is there."""
    return found.to(device, non_blocking=True)


def _runs(lengths: Tensor) -> tuple[tuple[int, int], ...]:
    length, count = lengths.unique(return_counts=True)
    return tuple(zip(count.tolist(), length.tolist(), strict=True))


def attention_by_length(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: dict[nn.Module, Segments] | None = None,
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
    own = segments[module]
    states = [part[0].transpose(0, 1) for part in (query, key, value)]
    if own.order is not None:
        states = [part.index_select(0, own.order) for part in states]
    sizes = [count * length for count, length in own.runs]
    attended = []
    for (count, _), *run in zip(own.runs, *(part.split(sizes) for part in states), strict=True):
        q, k, v = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in run)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        attended.append(mixed.transpose(1, 2).flatten(0, 1))
    joined = attended[0] if len(attended) == 1 else torch.cat(attended)
    return (joined if own.back is None else joined.index_select(0, own.back))[None], None


AttentionInterface.register(BY_LENGTH, attention_by_length)
