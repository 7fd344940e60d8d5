"""Tensors that may be spread over processes (FSDP): filled from files, gathered, looked at in part.

file (V, D) ─► this process' rows (V / N, D) ─► copied over the model's own
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from qwendet.errors import CheckpointError


@torch.no_grad()
def fill(own: Mapping[str, Tensor], folder: Path, files: str, what: str) -> None:
    """Copy the tensors of files over those of their names: every one, and no other."""

    def refused(name: str, state: str, file: Path) -> CheckpointError:
        fix = "take a checkpoint of this version and of this very model"
        return CheckpointError(f"the {what}'s weight {name} {state}", str(file), fix)

    missing = dict(own)
    for file in sorted(folder.glob(files)):
        try:
            with safe_open(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118  # not a mapping
                    if name not in missing:
                        raise refused(name, "is unexpected", file)
                    tensor, found = missing.pop(name), stored.get_tensor(name)
                    if tensor.shape != found.shape:
                        state = f"has shape {tuple(found.shape)}, expected {tuple(tensor.shape)}"
                        raise refused(name, state, file)
                    if isinstance(tensor, DTensor):  # each process has read the whole one and keeps its part
                        mesh, found = tensor.device_mesh, found.to(tensor.device)
                        found = distribute_tensor(found, mesh, tensor.placements, src_data_rank=None)
                    tensor.copy_(found)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the {what} cannot be loaded ({error})", str(file), "take another checkpoint"
            ) from error
    for name in sorted(missing):
        raise refused(name, "is missing", folder / files)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over processes, gathered; to be called on each of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def of_this_process(tensor: Tensor) -> Tensor:
    """The part that this process holds of a tensor that is spread over processes."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
