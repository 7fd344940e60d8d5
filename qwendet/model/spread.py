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
    missing = dict(own)
    for file in sorted(folder.glob(files)):
        try:
            with safe_open(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118  # not a mapping
                    if name not in missing:
                        raise _odd(what, name, "unexpected", file)
                    _copy(missing.pop(name), stored.get_tensor(name), f"the {what}'s weight {name}", file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the {what} cannot be loaded ({error})", str(file), "take another checkpoint"
            ) from error
    for name in sorted(missing):
        raise _odd(what, name, "missing", folder / files)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over processes, gathered; to be called on each of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def of_this_process(tensor: Tensor) -> Tensor:
    """The part that this process holds of a tensor that is spread over processes."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(own: Tensor, found: Tensor, name: str, file: Path) -> None:
    if own.shape != found.shape:
        what = f"{name} has shape {tuple(found.shape)}, expected {tuple(own.shape)}"
        raise CheckpointError(what, str(file), "take a checkpoint of this very model")
    if isinstance(own, DTensor):  # each process has read the whole one and keeps its part
        found = distribute_tensor(found.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    own.copy_(found)


def _odd(what: str, name: str, state: str, file: Path) -> CheckpointError:
    return CheckpointError(
        f"the {what}'s weight {name} is {state}",
        str(file),
        "take a checkpoint of this version and of this very model",
    )
