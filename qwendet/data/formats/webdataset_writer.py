"""WebDataset shards and, for each split, sample files whose images are the members of its shards.

train-000000.tar    000000000.jpg, 000000000.json, 000000001.jpg …      what the webdataset library reads
train.jsonl         {"images": ["train-000000.tar/000000000.jpg"], …}   what qwendet reads, in any order
SHA256SUMS          for sha256sum -c
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from qwendet.data.formats.jsonl_writer import JsonlWriter
from qwendet.data.images import resolve_image
from qwendet.data.samples import Turn
from qwendet.files import sha256_of_file

SHARD_SAMPLES = 1000
SUMS = "SHA256SUMS"


class WebDatasetWriter(JsonlWriter):
    """Writes the sample files; :func:`pack` the shards.

    Args:
        folder: an empty folder.
        stack: closes files if writing ends early.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        super().__init__(folder, stack, has_images=False)
        self._counts: Counter[str] = Counter()
        self._last = ""

    def place(self, split: str, name: str) -> str:
        """The member that the image added last becomes."""
        return self._last

    def add(self, split: str, turn: Turn, image: str) -> None:
        """Write a line."""
        number = self._counts[split]
        suffix = PurePosixPath(image).suffix.lower()
        self._last = f"{split}-{number // SHARD_SAMPLES:06}.tar/{number:09}{suffix}"
        self._counts[split] += 1
        super().add(split, turn, self._last)


def pack(placed: Mapping[str, tuple[str, str]], root: Path, folder: Path) -> Iterator[int]:
    """Write the shards: each image, and its line of the sample file as JSON.

    Args:
        placed: member: image and ``file:line``.
        root: folder that the images' paths start from.
        folder: with the sample files.

    Yields:
        How many images are in.
    """
    done = 0
    for samples in sorted(folder.glob("*.jsonl")):
        with ExitStack() as stack, samples.open(encoding="utf-8") as lines:
            shard, tar = "", None
            for line in lines:
                record = json.loads(line)
                (place,) = record["images"]
                if tar is None or place.partition("/")[0] != shard:
                    stack.close()
                    shard = place.partition("/")[0]
                    tar = stack.enter_context(tarfile.open(folder / shard, "w", format=tarfile.USTAR_FORMAT))
                name = PurePosixPath(place).name
                own = json.dumps(record | {"images": [name]}, ensure_ascii=False)
                _add(tar, name, resolve_image(placed[place][0], root, placed[place][1]).read_bytes())
                _add(tar, f"{PurePosixPath(name).stem}.json", own.encode())
                done += 1
                yield done
    sums = [f"{sha256_of_file(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A member whose bytes depend on name and content alone."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
