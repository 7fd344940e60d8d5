"""Which sample files a path holds, and which part each plays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from qwendet.checks.config.samples import Split
from qwendet.data.formats.detect import detect_format
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


def find_sample_files(paths: Sequence[Path]) -> dict[Split, Path]:
    """Find sample files and tell their part by their names; a single file of any name counts as training.

    Args:
        paths: JSONL files, or folders as ``data convert`` writes them.

    Returns:
        At most one file a part, those that others are compared with first.

    Raises:
        DataError: for a path that is absent or of another format, or two files that play the same part.
    """
    files = [file for path in paths for file in _files_of(path)]
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
            raise DataError(
                f"{found[part].name} and {file.name} are both {part} files", str(file), "give one of them"
            )
        found[part] = file
    return {part: found[part] for part in ORDER if part in found}


def _files_of(path: Path) -> Iterable[Path]:
    found = detect_format(path)
    if found != "jsonl":
        raise DataError(
            f"expected JSONL, got a data set in {found.upper()} format",
            str(path),
            f"convert it, which finds what is broken in it: qwendet data convert {path} DST",
        )
    if path.is_file():
        return [path]
    return sorted(file for file in path.glob("*.jsonl") if file.stem.lower() in PARTS)
