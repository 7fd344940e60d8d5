"""The vision tower with windows attended to by length: what the published one computes, in few calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from qwendet.checks.consistency.noise import attending
from qwendet.model.attention import attention_by_part
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.vision_tower import BY_LENGTH, plan

# Windows are 8 patches wide: whole ones, rims of 2 and 4 patches, and corners; the first size comes twice.
GRIDS = torch.tensor([[1, 10, 8], [1, 18, 20], [1, 4, 2], [1, 10, 8]])
ONE = torch.tensor([[1, 8, 16]])
SEVERAL_FRAMES = torch.tensor([[2, 10, 12]])
CPU = torch.device("cpu")
grids = pytest.mark.parametrize("grid", [GRIDS, ONE, SEVERAL_FRAMES], ids=["images", "whole", "frames"])


@pytest.fixture
def visual(detector64: Qwen25VLWithDetection) -> Any:
    assert detector64.config.vision_config._attn_implementation == BY_LENGTH
    return detector64.vlm.model.visual


def pixels_of(visual: Any, grid: Tensor) -> Tensor:
    embed = visual.patch_embed
    size = embed.in_channels * embed.temporal_patch_size * embed.patch_size**2
    generator = torch.Generator().manual_seed(0)
    return torch.randn(int(grid.prod(1).sum()), size, generator=generator, dtype=torch.float64)


def published_order(visual: Any, grid: Tensor) -> Tensor:
    index, _ = get_vision_window_index(grid, visual.spatial_merge_size, visual.window_size, visual.patch_size)
    return index


def restored(visual: Any, states: Tensor, order: Tensor) -> Tensor:
    return states.unflatten(0, (-1, visual.spatial_merge_unit))[order.argsort()].flatten(0, 1)


@pytest.mark.usefixtures("float64_is_kept")
@grids
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_plan__changes_neither_patches_nor_image_tokens_nor_gradients(
    visual: Any, detector64: Qwen25VLWithDetection, grid: Tensor, implementation: str
) -> None:
    pixels = pixels_of(visual, grid)
    with attending(detector64, implementation):
        usual = visual(pixels, grid_thw=grid)
        patches, images = detector64.encode_images(pixels, grid)
    expected = restored(visual, usual.last_hidden_state, published_order(visual, grid))
    torch.testing.assert_close(patches, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.cat(images.pooler_output), usual.pooler_output, rtol=0, atol=1e-9)
    parameters = list(visual.blocks.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = torch.autograd.grad(patches.square().sum(), parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_plan__attends_once_a_length_of_an_image_in_each_layer(
    visual: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, shapes = F.scaled_dot_product_attention, []

    def counted(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.append((query.shape[0], query.shape[2]))
        return sound(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    visual(pixels_of(visual, GRIDS), grid_thw=GRIDS, **plan(visual, GRIDS, CPU))
    first = last = [(1, 16), (1, 64)]
    of_windows = [*first, (1, 8), (2, 16), (2, 32), (4, 64), (1, 8), *last]
    of_images = [(1, 80), (1, 360), (1, 8), (1, 80)]
    layers = range(len(visual.blocks))
    expected = [of_images if layer in visual.fullatt_block_indexes else of_windows for layer in layers]
    assert shapes == [shape for of_layer in expected for shape in of_layer]


@grids
@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2"])
def test_plan__holds_all_that_the_tower_takes_from_the_device(
    visual: Any, grid: Tensor, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Flash Attention, which only a GPU runs: the boundaries of the published order."""
    monkeypatch.setattr(
        visual.config, "_attn_implementation_internal", attention_by_part(implementation)["vision_config"]
    )
    found = plan(visual, grid, CPU)
    index, bounds = get_vision_window_index(
        grid, visual.spatial_merge_size, visual.window_size, visual.patch_size
    )
    if implementation == "sdpa":
        assert found["cu_seqlens"].tolist() == found["cu_window_seqlens"].tolist() == [0, int(bounds[-1])]
        assert sorted(found["window_index"].tolist()) == sorted(index.tolist())
        return
    order = found["window_index"]
    windows = order.split((found["cu_window_seqlens"].diff() // visual.spatial_merge_unit).tolist())
    published = index.split((bounds.diff() // visual.spatial_merge_unit).tolist())
    assert sorted(map(Tensor.tolist, windows)) == sorted(map(Tensor.tolist, published))
    assert found["max_window_seqlen"] == int(bounds.diff().max())
    frames = [rows * columns for count, rows, columns in grid.tolist() for _ in range(count)]
    assert found["cu_seqlens"].diff().tolist() == frames
    assert found["cu_seqlens"].dtype == torch.int32
    assert found["max_seqlen"] == max(frames)
    assert "segments" not in found
