"""Shards of a thousand images: tars as WebDataset has them, with sample files, or Parquet, in each split.

train-000000.tar      000000000.jpg, 000000000.json, 000000001.jpg …      what the webdataset library reads
train.jsonl           {"images": ["train-000000.tar/000000000.jpg"], …}   what qwendet reads, in any order

train-000000.parquet  image: {bytes, path}, width, height, objects, labels
SHA256SUMS            for sha256sum -c
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from qwendet.data.formats.jsonl_writer import JsonlWriter
from qwendet.data.images import resolve_image
from qwendet.data.parquet import FEDERATED, import_parquet
from qwendet.data.samples import Turn
from qwendet.data.segmentation import compressed
from qwendet.files import sha256_of_file

SHARD_SAMPLES = 1000
GROUP_BYTES, GROUP_ROWS = 1 << 18, 256
"""Of a row group, which is read as a whole for any of its images: so much, or one image."""
SUMS = "SHA256SUMS"


class ShardWriter(JsonlWriter):
    """Writes the sample files; :func:`pack` the shards, whose ``suffix`` is ``.tar`` or ``.parquet``."""

    def __init__(self, folder: Path, *, suffix: str, has_images: bool = True) -> None:
        super().__init__(folder, has_images=False)  # its lines name members and rows
        self._suffix = suffix
        self._counts: Counter[str] = Counter()
        self._last = ""
        if suffix == ".parquet":
            import_parquet()  # what is lacking is reported before the work

    def place(self, split: str, name: str) -> str:
        """The member or row that the image added last becomes."""
        return self._last

    def add(self, split: str, turn: Turn, image: str) -> None:
        """Write a line."""
        number, ending = self._counts[split], PurePosixPath(image).suffix.lower()
        self._last = f"{split}-{number // SHARD_SAMPLES:06}{self._suffix}/{number:09}{ending}"
        self._counts[split] += 1
        if self._suffix == ".parquet":
            objects = (replace(own, segmentation=compressed(own.segmentation)) for own in turn.objects)
            turn = replace(turn, objects=tuple(objects))
        super().add(split, turn, self._last)

    def finish(self) -> list[str]:
        """The sample files; of Parquet, which needs none, the shards."""
        files = super().finish()
        if self._suffix == ".tar":
            return files
        return [
            f"{split}-{number:06}.parquet"
            for split, count in self._counts.items()
            for number in range(-(-count // SHARD_SAMPLES))
        ]


def pack(placed: Mapping[str, tuple[str, str]], root: Path, folder: Path) -> Iterator[int]:
    """Write the shards: each image, and what its line of the sample file says.

    Args:
        placed: member or row: image and ``file:line``.
        root: folder that the images' paths start from.
        folder: with the sample files.

    Yields:
        How many images are in.
    """
    done = 0
    for samples in sorted(folder.glob("*.jsonl")):
        with samples.open(encoding="utf-8") as lines:
            for shard, records in groupby(map(json.loads, lines), key=lambda own: _place(own).parts[0]):
                write = _write_tar if shard.endswith(".tar") else _write_parquet
                for _ in write(folder / shard, records, placed, root):
                    done += 1
                    yield done
        if not shard.endswith(".tar"):
            samples.unlink()
    sums = [f"{sha256_of_file(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")


def _place(record: Mapping[str, Any]) -> PurePosixPath:
    return PurePosixPath(record["images"][0])


def _write_tar(
    shard: Path, records: Iterator[dict[str, Any]], placed: Mapping[str, tuple[str, str]], root: Path
) -> Iterator[None]:
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            place = _place(record)
            image, where = placed[str(place)]
            own = json.dumps(record | {"images": [place.name]}, ensure_ascii=False)
            _add(tar, place.name, resolve_image(image, root, where).read_bytes())
            _add(tar, f"{place.stem}.json", own.encode())
            yield


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A member whose bytes depend on name and content alone."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))


def _write_parquet(
    shard: Path, records: Iterator[dict[str, Any]], placed: Mapping[str, tuple[str, str]], root: Path
) -> Iterator[None]:
    pyarrow, parquet = import_parquet()
    text, number, flag, whole = pyarrow.string(), pyarrow.float64(), pyarrow.bool_(), pyarrow.int32()
    item = {"bbox_2d": pyarrow.list_(number), "desc": text, "crowd": flag, "difficult": flag, "area": number}
    item |= {
        "polygon": pyarrow.list_(pyarrow.list_(number)),
        "rle": pyarrow.struct({"size": pyarrow.list_(whole), "counts": text}),
        "frequency": text,
    }
    schema = pyarrow.schema(
        {
            "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": text}),
            "width": whole,
            "height": whole,
            "objects": pyarrow.list_(pyarrow.struct(item)),
            **dict.fromkeys(("labels", *FEDERATED), pyarrow.list_(text)),
        }
    )
    rows: list[dict[str, Any]] = []
    size = 0
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with parquet.ParquetWriter(shard, schema, **plain) as writer:  # photographs are compressed already
        for record in records:
            image, where = placed[str(_place(record))]
            content = resolve_image(image, root, where).read_bytes()
            if rows and (size + len(content) > GROUP_BYTES or len(rows) == GROUP_ROWS):
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows, size = [], 0
            name = PurePosixPath(image).name.encode("utf-8", "backslashreplace").decode()
            rows.append(record | {"image": {"bytes": content, "path": name}})
            size += len(content)
            yield
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))
