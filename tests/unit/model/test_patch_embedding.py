"""A patch embedding by matrix product is the convolution that it replaces."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qwendet.loader import Bundle
from qwendet.model.vision_tower import PatchEmbedding, embed_by_product

KERNEL = (2, 14, 14)


@pytest.mark.parametrize("bias", [True, False])
def test_product__has_the_values_gradients_and_names_of_the_convolution(bias: bool) -> None:
    convolution = nn.Conv3d(3, 16, KERNEL, KERNEL, bias=bias).double()
    product = copy.deepcopy(convolution)
    embed_by_product(product)
    patches = torch.randn(5, 3, *KERNEL, dtype=torch.float64)
    wanted, found = convolution(patches).flatten(1), product(patches)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), list(product.parameters())),
        torch.autograd.grad(wanted.square().sum(), list(convolution.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert {name: p.shape for name, p in product.named_parameters()} == {
        name: p.shape for name, p in convolution.named_parameters()
    }


def test_a_copy__computes_with_its_own_weights() -> None:
    product = nn.Conv3d(3, 4, KERNEL, KERNEL)
    embed_by_product(product)
    other = copy.deepcopy(product)
    with torch.no_grad():
        other.weight.zero_()
        other.bias.zero_()
    patches = torch.randn(2, 3, *KERNEL)
    assert not other(patches).any()
    assert product(patches).any()


def test_a_layer_put_in_its_place__is_left_as_it_is() -> None:
    layer = nn.Linear(3, 4)
    embed_by_product(layer)
    assert type(layer) is nn.Linear


def test_loader__has_it(bundle: Bundle) -> None:
    assert type(bundle.detector.vlm.model.visual.patch_embed.proj) is PatchEmbedding
