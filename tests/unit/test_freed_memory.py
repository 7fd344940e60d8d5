"""Freed memory stays for the time of training and goes back when it ends."""

from __future__ import annotations

import ctypes
import platform
import resource
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from qwendet.freed_memory import freed_memory_kept

FLOATS, BYTES = 25_000_000, 100_000_000
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def faults_of_a_block() -> int:
    """Page faults of taking, filling and freeing 100 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(FLOATS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def measured() -> tuple[int, int, int, int]:
    """Page faults of a block before, during and after; bytes that went back to the kernel in between."""
    usual = faults_of_a_block()
    with freed_memory_kept():
        during = min(
            faults_of_a_block() for _ in range(6)
        )  # a small one may take a corner of the first's place
        kept = resident_bytes()
    given_back = kept - resident_bytes()
    return usual, during, given_back, faults_of_a_block()


@needs_glibc
def test_a_block__that_was_freed_is_taken_again_without_the_kernel() -> None:
    with get_context("spawn").Pool(1) as pool:  # a process in which no other test has left free blocks
        pool.apply(measured)  # after which the small blocks of a new process have theirs
        usual, during, given_back, after = pool.apply(measured)
    assert during < usual / 20
    assert given_back > BYTES / 2
    assert after > usual / 2


def test_another_c_library__is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("it was called"))
    with freed_memory_kept():
        pass
