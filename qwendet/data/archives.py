"""Images inside shards: a path may go on inside a tar, or inside a Parquet file by the number of a row.

    "a.jpg"                          ─► file_at ─► Path
    "train-000000.tar/000000017.jpg" ─► file_at ─► Member(train-000000.tar, offset, size) ─► bytes
    "train-000000.parquet/17/a.jpg"  ─► file_at ─► Row(train-000000.parquet, 17)          ─► bytes

A member is read at random: its place comes from an index of the tar's headers, 24 bytes a member, made when
the first member is asked for. So order, demonstrations and resume are what they are for files.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from qwendet.data import parquet
from qwendet.data.remote import fetch_absent
from qwendet.errors import DataError
from qwendet.progress import track

SUFFIXES, BLOCK = (".tar", parquet.SUFFIX), 512
SAMPLED = 4096
"""Bytes of each piece of a file by which it is known again."""
ENTRY = np.dtype([("name", np.int64), ("offset", np.int64), ("size", np.int64)])


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar.

    Attributes:
        archive: the tar, by its real path.
        name: of the file in it.
        offset: of its first byte in the tar.
        size: in bytes.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read_bytes(self) -> bytes:
        """All of it."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def open(self, mode: str = "rb") -> BinaryIO:
        """As :meth:`pathlib.Path.open`, to read bytes."""
        return io.BytesIO(self.read_bytes())


class Row(Member):
    """A file in a row of a Parquet file: ``offset`` is the row's number; the size is read with the file."""

    __slots__ = ()

    def read_bytes(self) -> bytes:
        """All of it."""
        return parquet.open_table(self.archive).image(self.offset)


Stored = Path | Member
"""A regular file, or one inside a shard."""


def file_at(path: Path) -> Stored | None:
    """What lies at a path, which may go on inside a shard; ``None`` if that is no regular file.

    Raises:
        DataError: for a tar on the way that is compressed, cut or none, and a broken Parquet file.
    """
    if (found := path.resolve()).is_file():
        return found
    shards = (parent for parent in path.parents if parent.suffix in SUFFIXES)
    archive = next((shard for shard in shards if shard.is_file() or fetch_absent(shard)), None)
    if archive is None:
        return path.resolve() if fetch_absent(path) else None
    real, name = archive.resolve(), path.relative_to(archive).as_posix()
    if archive.suffix == parquet.SUFFIX:
        row = name.partition("/")[0]
        is_there = row.isdecimal() and int(row) < len(parquet.open_table(real))
        return Row(real, name, int(row), -1) if is_there else None
    status = real.stat()
    entries = _index(real, status.st_size, status.st_mtime_ns)
    at = int(np.searchsorted(entries["name"], hash(name)))
    if at == len(entries) or entries["name"][at] != hash(name):
        return None
    return Member(real, name, int(entries["offset"][at]), int(entries["size"][at]))


def identity(file: Stored) -> tuple[int, ...]:
    """Device, inode, offset in a tar: equal for every path and hard link that leads to the same file."""
    status = (file.archive if isinstance(file, Member) else file).stat()
    return (status.st_dev, status.st_ino, *([file.offset] if isinstance(file, Member) else []))


def num_bytes(file: Stored) -> int:
    """Its size."""
    if isinstance(file, Row):
        return len(file.read_bytes())
    return file.size if isinstance(file, Member) else file.stat().st_size


def changed_at(file: Stored) -> int:
    """When it was last written, or its tar, in nanoseconds."""
    return (file.archive if isinstance(file, Member) else file).stat().st_mtime_ns


def digest(file: Stored) -> str:
    """SHA-256 of its bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sampled_digest(file: Stored) -> str:
    """SHA-256 of its length and its first, middle and last bytes: another image has others."""
    size = num_bytes(file)
    found, most = hashlib.sha256(str(size).encode()), size - SAMPLED
    with file.open("rb") as opened:
        for start in (0, most // 2, most):
            opened.seek(max(0, start))
            found.update(opened.read(SAMPLED))
    return found.hexdigest()


def same_bytes(one: Stored, other: Stored) -> bool:
    """Whether both hold the same bytes."""
    return num_bytes(one) == num_bytes(other) and one.read_bytes() == other.read_bytes()


def copies(files: Collection[Stored]) -> dict[Stored, object]:
    """Something for each file, alike for those of the same bytes.

    Of files of equal length some bytes are read, and all of those that agree in them.
    """
    lengths = {file: _length(file) for file in files}
    order = {length: at for at, length in enumerate(dict.fromkeys(lengths.values()))}
    found: dict[Stored, object] = {file: file for file in sorted(files, key=lambda own: order[lengths[own]])}
    alike = [file for file in _repeated(lengths) if lengths[file] is not None]
    keys: dict[Stored, str] = {}
    for read in (sampled_digest, digest):
        if not alike:
            break
        keys = {}
        with track("comparing images", len(alike)) as advance:
            for done, file in enumerate(alike, 1):
                keys[file] = read(file)
                advance(done, "")
        alike = _repeated(keys)
    return found | {file: keys[file] for file in alike}


def _repeated(keys: Mapping[Stored, object]) -> list[Stored]:
    """Files whose key another has, too."""
    counts = Counter(keys.values())
    return [file for file, key in keys.items() if counts[key] > 1]


def _length(file: Stored) -> int | None:
    return None if isinstance(file, Path) and not file.is_file() else num_bytes(file)


@cache
def _index(archive: Path, size: int, changed: int) -> npt.NDArray[np.void]:
    """Hash of the name, offset and size of each file in a tar, sorted by hash; the last of a name counts."""
    found = {hash(name): place for name, *place in members_of(archive)}
    rows = [(name, *place) for name, place in found.items()]
    return np.sort(np.array(rows, dtype=ENTRY), order="name")


def members_of(archive: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar, in order; a cut one raises :class:`DataError`."""
    end = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if member.isreg():
                    yield member.name.removeprefix("./"), member.offset_data, member.size
                tar.members = []  # type: ignore[attr-defined]  # it keeps them all
        with archive.open("rb") as file:
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):  # tarfile takes a cut header for the end
                raise tarfile.ReadError(f"it is cut: no end mark at byte {end:,}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"the tar cannot be read ({error}; {archive.stat().st_size:,} bytes)",
            str(archive),
            "fetch or write it again, uncompressed: members are read at random",
        ) from error
