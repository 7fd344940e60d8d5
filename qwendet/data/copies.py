"""Image files of the same bytes, whatever their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from qwendet.data.archives import Stored, digest, num_bytes
from qwendet.progress import track


def copies(files: Collection[Stored]) -> dict[Stored, object]:
    """Something for each file, alike for those of the same bytes; only those of equal length are read."""
    lengths = {file: _length(file) for file in files}
    counts = Counter(lengths.values())
    order = {length: at for at, length in enumerate(counts)}
    found: dict[Stored, object] = {file: file for file in sorted(files, key=lambda own: order[lengths[own]])}
    alike = [file for file in found if lengths[file] is not None and counts[lengths[file]] > 1]
    if alike:
        with track("comparing images", len(alike)) as advance:
            for done, file in enumerate(alike, 1):
                found[file] = digest(file)
                advance(done, "")
    return found


def _length(file: Stored) -> int | None:
    return None if isinstance(file, Path) and not file.is_file() else num_bytes(file)
