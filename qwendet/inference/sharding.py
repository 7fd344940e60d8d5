"""Work shared out among the processes that a launcher started, put together again in order.

    batches   0 1 2 3 4      process 0 of 2: 0 2 4      process 1 of 2: 1 3      each gets 0 1 2 3 4

Whole batches are dealt, so that every batch is the one that a single process would have made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from qwendet.errors import EnvironmentLacksError

Item = TypeVar("Item")
Found = TypeVar("Found")


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
        distributed.init_process_group("gloo")
        try:
            yield
        finally:
            distributed.destroy_process_group()


@contextmanager
def peers_needed() -> Iterator[None]:
    """Say in plain words that another process of the run is gone; its launcher says which.

    torch has classes for what NCCL and the rendezvous tell, but only words for what gloo does.

    Raises:
        EnvironmentLacksError: in place of the error that the loss of a peer causes here.
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
            "the launcher names it; mend what ended it, then start again (training goes on with --resume)",
        ) from error


def deal(items: Sequence[Item], batch_size: int, rank: int, world: int) -> list[Item]:
    """The items of every ``world``-th batch, from batch ``rank``.

    Example:
        >>> deal("abcdefg", 2, 0, 2), deal("abcdefg", 2, 1, 2)
        (['a', 'b', 'e', 'f'], ['c', 'd', 'g'])
    """
    starts = range(rank * batch_size, len(items), world * batch_size)
    return [item for start in starts for item in items[start : start + batch_size]]


def collect(found: Sequence[Sequence[Found]], batch_size: int) -> list[Found]:
    """Put what the processes made of their items into the order of all items.

    Example:
        >>> "".join(collect(["abef", "cdg"], 2))
        'abcdefg'
    """
    remaining = [iter(part) for part in found]
    together: list[Found] = []
    while batch := [item for part in remaining for item in islice(part, batch_size)]:
        together += batch
    return together


def map_batches(
    function: Callable[[Sequence[Item]], Iterable[Found]],
    items: Sequence[Item],
    batch_size: int,
    advance: Callable[[int, str], object],
    *,
    alone: bool = False,
) -> list[Found]:
    """Apply a function that works in batches and in order, this process' share here, the others' elsewhere.

    Args:
        function: gives one result an item.
        items: all items, the same on every process.
        batch_size: items of a batch of the function.
        advance: told how many items are done, all processes taken to be as fast as this one.
        alone: the other processes have no part in it.

    Returns:
        The results of all items, on every process of :func:`joined_processes` that has a part in it.
    """
    from torch import distributed

    is_shared = distributed.is_initialized() and not alone
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if is_shared else (0, 1)
    own: list[Found] = []
    for result in function(deal(items, batch_size, rank, world)):
        own.append(result)
        advance(min(len(own) * world, len(items)), "")
    if world == 1:
        return own
    gathered: list[Any] = [None] * world
    distributed.all_gather_object(gathered, own)
    return collect(gathered, batch_size)
