"""Where samples are: a JSONL file, shards, a folder or a pattern of them, here or in an object store.

"cells.jsonl"                     ─► SampleFile
"cells/", "cells/train-*.parquet" ─► Shard, Shard … ─► Joined, one after the other
"hf://datasets/a/b/train-*.tar"   ─► fetched first
"""

from __future__ import annotations

import os
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from qwendet.data.archives import SUFFIXES
from qwendet.data.formats.records import WHOLE, split_of
from qwendet.data.remote import fetch
from qwendet.data.samples import SampleFile, SampleLine, SampleSource
from qwendet.data.shards import Shard, open_shard, tell_form
from qwendet.errors import DataError
from qwendet.files import files_below, is_url


class Joined(SampleSource):
    """The samples of several sources, one after the other."""

    def __init__(self, path: Path, parts: Sequence[SampleSource]) -> None:
        self.path = path
        self._parts = parts
        self._starts = list(accumulate(map(len, parts), initial=0))

    @property
    def parts(self) -> Sequence[SampleSource]:
        """The sources."""
        return self._parts

    def __len__(self) -> int:
        return self._starts[-1]

    def _part(self, index: int) -> tuple[SampleSource, int]:
        number = bisect(self._starts, index) - 1
        return self._parts[number], index - self._starts[number]

    def line(self, index: int) -> SampleLine:
        """The line of a source."""
        part, own = self._part(index)
        return part.line(own)

    def where(self, index: int) -> str:
        """Its place in that source."""
        part, own = self._part(index)
        return part.where(own)

    def line_bytes(self) -> Sequence[int]:
        """Of every source."""
        return [size for part in self._parts for size in part.line_bytes()]


def samples_of(
    paths: Path | Sequence[str | Path],
    root: Path | None = None,
    split: str = "",
    *,
    may_be_empty: bool = False,
) -> SampleSource:
    """Open samples, whatever they lie in; those of several paths one after the other.

    Args:
        paths: one or several, each a file, a folder of shards, a pattern with ``*``, or a URL of these.
        root: folder that image paths of JSONL start from; ``None`` is its own.
        split: ``train`` or ``val``: of a folder whose shards' names speak of splits these alone are taken.
        may_be_empty: take a file without samples.

    Raises:
        DataError: if one is absent or broken, or there twice.
        EnvironmentLacksError: without a library that it needs.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    found = {Path(path): source_files(Path(path), split) for path in paths}
    times = Counter(file.resolve() for path in paths for file in found[Path(path)])
    if twice := [file for file, count in times.items() if count > 1]:
        fix = "name it once; a weight of 2 takes its samples twice"
        raise DataError("these samples are named twice", str(twice[0]), fix)
    opened = [_opened(path, files, root, may_be_empty=may_be_empty) for path, files in found.items()]
    joined = opened[0] if len(opened) == 1 else Joined(Path(", ".join(map(str, paths))), opened)
    joined.files = [*times]
    return joined


def _opened(path: Path, files: Sequence[Path], root: Path | None, *, may_be_empty: bool) -> SampleSource:
    parts = [
        open_shard(file) if file.suffix in SUFFIXES else SampleFile(file, root, may_be_empty=may_be_empty)
        for file in files
    ]
    shards = [part for part in parts if isinstance(part, Shard)]
    for shard in shards:
        shard.require_objects()
    opened = parts[0] if len(parts) == 1 else Joined(path, parts)
    opened.form = tell_form(shards, path) if shards else ""
    return opened


def source_files(path: Path, split: str = "") -> Sequence[Path]:
    """The files of a source, sorted by name; arguments and errors as :func:`samples_of`."""
    is_pattern = "*" in path.name and not path.exists()
    if not is_pattern and not is_url(path) and not path.is_dir():
        return [path]
    by_split = shards_by_split(path)
    is_file = path.suffix in (".jsonl", *SUFFIXES) and not path.is_dir()
    if split and not is_pattern and not is_file and by_split.keys() != {WHOLE}:
        if split not in by_split:
            what = f"no shard is of {split}: there are shards of {', '.join(sorted(by_split))}"
            raise DataError(what, str(path), "name those that are meant, such as DIR/train-*.parquet")
        return by_split[split]
    return sorted(file for files in by_split.values() for file in files)


def shards_by_split(path: Path) -> dict[str, list[Path]]:
    """The shards of a folder, a pattern or a URL by the splits that names of files and folders speak of.

    Raises:
        DataError: if there are none.
    """
    if is_url(path):
        found = fetch(path, frozenset(SUFFIXES))
    elif path.is_dir():
        found = list(files_below(path, frozenset(SUFFIXES)))
    else:
        found = [path] if path.exists() else list(path.parent.glob(path.name))
    if not found:
        raise DataError("there is no shard of this name, or below it", str(path), "correct the path")
    home = path if path.is_dir() else Path(os.path.commonpath([file.parent for file in found]))
    by_split: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(found):
        names = reversed(file.relative_to(home).parts)
        by_split[next(filter(None, map(split_of, names)), WHOLE)].append(file)
    return by_split
