"""What paths hold: sample files, and which part each plays; and annotated data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from qwendet.checks.config.samples import Split
from qwendet.data.formats.box_frames import BoxFrame
from qwendet.data.formats.detect import detect_format
from qwendet.data.formats.records import Format
from qwendet.errors import DataError

PARTS: dict[str, Split] = {
    "train": "train",
    "all": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "teachers": "teachers",
    "pool": "teachers",
}
ORDER: tuple[Split, ...] = ("val", "test", "train", "teachers")


class Given(NamedTuple):
    """Data to be looked at.

    Attributes:
        files: at most one sample file a part, or folder of shards, or in a config several; those that
            others are compared with first.
        datasets: data sets of other formats, each with splits of its own, and their formats.
        frame: of the boxes of conversations; ``None`` tells it from them.
    """

    files: Mapping[Split, Path | Sequence[Path]]
    datasets: Mapping[Path, Format] = MappingProxyType({})
    frame: BoxFrame | None = None


def find_data(
    paths: Sequence[Path], source: Format | Literal["auto"] = "auto", frame: BoxFrame | None = None
) -> Given:
    """Find sample files and data sets, recognised as ``data convert`` does.

    The name of a sample file says its part; a single file of any name counts as training.
    """
    formats = {path: detect_format(path) if source == "auto" else source for path in paths}
    files = [file for path in paths if formats[path] == "jsonl" for file in _files_of(path)]
    return Given(_by_part(files), {path: kind for path, kind in formats.items() if kind != "jsonl"}, frame)


def _by_part(files: Sequence[Path]) -> dict[Split, Path]:
    found: dict[Split, Path] = {}
    for file in files:
        part = "train" if len(files) == 1 else PARTS.get(file.stem.lower())
        if part is None:
            raise DataError(
                f"cannot tell what {file.name} is for",
                str(file),
                f"give it alone, or name it after its part: {', '.join(PARTS)}",
            )
        if part in found:
            raise DataError(f"{found[part]} and {file} are both {part} files", str(file), "give one of them")
        found[part] = file
    return {part: found[part] for part in ORDER if part in found}


def _files_of(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    found = sorted(file for file in path.glob("*.jsonl") if file.stem.lower() in PARTS)
    if not found:
        raise DataError("expected a .jsonl file, or a folder with train.jsonl", str(path), "correct the path")
    return found
