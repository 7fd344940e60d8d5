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
    counts, found = Counter(lengths.values()), dict[Stored, object]()
    order = {length: at for at, length in enumerate(counts)}
    with track("comparing images", len(files)) as advance:
        for file, length in sorted(lengths.items(), key=lambda own: order[own[1]]):
            is_alone = length is None or counts[length] == 1
            found[file] = file if is_alone else digest(file)
            advance(len(found), "")
    return found


def _length(file: Stored) -> int | None:
    return None if isinstance(file, Path) and not file.is_file() else num_bytes(file)
