"""Memory that training on a CPU frees stays with the process until training ends.

glibc hands a block of 32 MB or more back to the kernel as soon as it is freed, and the next one comes anew,
cleared page by page. A training step frees and takes gigabytes of such blocks.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of glibc's mallopt(), from its <malloc.h>.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}
USUAL = {MMAP_MAX: 65_536, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}
"""What glibc's own adjustment, which the first mallopt() ends, comes to in a process with large blocks."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed; when the block ends, give back what is free by then.

    C libraries other than glibc are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for parameter, value in KEEP.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
