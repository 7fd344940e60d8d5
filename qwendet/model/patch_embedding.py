"""The vision tower's patch embedding as the matrix product that it is."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
