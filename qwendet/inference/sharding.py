"""The processes that a launcher started: joined, numbered, waited for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from qwendet.errors import EnvironmentLacksError

Value = TypeVar("Value")
LONGEST_WAIT = timedelta(days=30)
"""For processes that have more to do; one that is gone is noticed at once."""


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes: ``torchrun`` and its kin set ``RANK``."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the other processes of the launcher, each on a GPU of its own if there are GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with peers_needed():
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        try:
            yield
        finally:
            distributed.destroy_process_group()


@contextmanager
def peers_needed() -> Iterator[None]:
    """Say in plain words that another process of the run is gone; its launcher says which.

    torch has classes for what NCCL and the rendezvous tell, but only words for what gloo does.
    """
    try:
        yield
    except RuntimeError as error:
        words = (str(error) or type(error).__name__).splitlines()[0]
        from torch.distributed import DistError

        if not isinstance(error, DistError) and "gloo/" not in words:
            raise
        raise EnvironmentLacksError(
            f"another process of this run is gone ({words})",
            f"rank {os.environ.get('RANK', '0')}",
            "the launcher names it; fix what ended it, then start again (training goes on with --resume)",
        ) from error


def wait_for_all() -> None:
    """Wait until all joined processes are here."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()


@contextmanager
def folder_or_temporary(folder: Path | None) -> Iterator[Path]:
    """The folder that is given, else one for all joined processes, removed in the end."""
    if folder is not None:
        yield folder
        return
    with TemporaryDirectory(prefix="qwendet-") as own:
        yield Path(of_first_process(own))
        wait_for_all()


def of_first_process(value: Value) -> Value:
    """What the first of the joined processes gives here, on all of them."""
    from torch import distributed

    values = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


def rank_and_world() -> tuple[int, int]:
    """Which of the joined processes this is, and how many there are."""
    from torch import distributed

    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
