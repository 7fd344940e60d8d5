"""Shards, files of images with what is said of them: Parquet, and tars as WebDataset has them.

train-000.parquet ─► row 7: image, objects            ┐
train-000.tar     ─► 0007.jpg, 0007.json beside it    ├─► SampleLine, whose image's path goes on in the shard
"""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np

from qwendet.data.archives import Member, members_of
from qwendet.data.images import IMAGE_SUFFIXES, image_size
from qwendet.data.parquet import SUFFIX, open_table
from qwendet.data.rows import OBJECTS, are_corners, box_of, is_box, objects_of, record_line
from qwendet.data.samples import SampleLine, SampleSource
from qwendet.errors import DataError
from qwendet.files import is_hidden

BYTES_OF_AN_OBJECT = 60
"""Of its line."""
LOOKED_AT = 200
"""Images whose boxes decide how those of a shard are written."""


class Shard(SampleSource):
    """The images of a shard; their boxes are read where they are asked for.

    Attributes:
        corners: whether boxes of others are corners, and not COCO's.
    """

    corners = False
    names: Mapping[int, str] = MappingProxyType({})

    @abstractmethod
    def image(self, index: int, values: Mapping[str, Any] | None = None) -> str:
        """The path of an image, from the shard's folder; ``values`` if they are read already."""

    @abstractmethod
    def values(self, index: int) -> dict[str, Any]:
        """What is said of an image; raises :class:`DataError` if that cannot be read."""

    def require_objects(self) -> None:
        """Refuse a shard of images alone."""

    def line(self, index: int) -> SampleLine:
        """What is said of an image, as our line."""
        where, root = self.where(index), self.path.parent
        try:
            values = self.values(index)
            image = self.image(index, values)
            raw = record_line(values, image, where, self.names, corners=self.corners)
        except DataError as error:
            return SampleLine(error, where, root)
        return SampleLine(raw, where, root)

    def boxes(self, index: int) -> list[tuple[Sequence[float], tuple[int, int]]]:
        """An image's boxes as others write them, each with its size; broken ones are reported elsewhere."""
        try:
            written = (box_of(own) for own in objects_of(self.values(index), ""))
            found = list(filter(is_box, written))
            size = image_size(self.image(index), self.path.parent, "") if found else (0, 0)
        except DataError:
            return []
        return [(box, size) for box in found]


class ParquetShard(Shard):
    """The rows of a Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_rows = len(open_table(path))

    def __len__(self) -> int:
        return self._num_rows

    def image(self, index: int, values: Mapping[str, Any] | None = None) -> str:
        """Behind the file's name the row's number, and the name that it has for the image."""
        table = open_table(self.path)
        stored = (self.values(index) if values is None else values).get(table.column)
        if not table.holds_files:
            return str(stored)
        name = PurePosixPath(((stored or {}).get("path") or "").replace("\\", "/")).name
        return "/".join(filter(None, (self.path.name, str(index), "" if name == ".." else name)))

    def where(self, index: int) -> str:
        """File and row."""
        return f"{self.path}: row {index}"

    def values(self, index: int) -> dict[str, Any]:
        """The columns."""
        return open_table(self.path).values(index)

    def require_objects(self) -> None:
        """Refuse a file without the column."""
        table = open_table(self.path)
        fix = "qwendet data convert SRC DST --to parquet writes such a file"
        kinds = [table.kind(name) for name in OBJECTS if name in table.others]
        if not kinds:
            what = f"no column objects: expected image and objects, got {table.shown}"
            raise DataError(what, str(self.path), fix)
        if not kinds[0].startswith(("list", "struct", "large_list")):
            what = f"the column objects holds {kinds[0]}: expected a list of objects, or a struct of lists"
            raise DataError(what, str(self.path), fix)

    @cached_property
    def names(self) -> Mapping[int, str]:  # type: ignore[override]
        """Names of the class labels of ``objects``, as the ``datasets`` library notes them in the schema."""
        waiting: list[Any] = [json.loads(open_table(self.path).metadata.get(b"huggingface", b"{}"))]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict) and value.get("_type") == "ClassLabel":
                return dict(enumerate(map(str, value.get("names", ()))))
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            waiting += inner
        return {}

    def line_bytes(self) -> Sequence[int]:
        """By the number of objects."""
        table, counts = open_table(self.path), array("L")
        for column in table.each(next(name for name in OBJECTS if name in table.others)):
            counts.extend(BYTES_OF_AN_OBJECT * count for count in _lengths(column))
        return counts


def _lengths(column: Any) -> Iterator[int]:
    from pyarrow import compute, types

    if types.is_struct(column.type):  # of lists
        column = compute.struct_field(column, 0)
    return (count or 0 for count in compute.list_value_length(column).to_pylist())


class TarShard(Shard):
    """The images of a tar, which is not compressed, so that each can be read by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        members = list(members_of(path))
        texts = {_key(name): place for name, *place in members if name.endswith(".json")}
        images = [name for name, *_ in members if _is_image(PurePosixPath(name))]
        if not images:
            found = ", ".join(repr(name) for name, *_ in members[:3]) or "nothing"
            raise DataError(f"the shard holds no images, but {found}", str(path), "give shards of images")
        self._images = np.array([name.encode() for name in images])
        self._texts = np.array([texts.get(_key(name), (0, -1)) for name in images], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def _name(self, index: int) -> str:
        return bytes(self._images[index]).decode()

    def image(self, index: int, values: Mapping[str, Any] | None = None) -> str:
        """Behind the tar's name the member's."""
        return f"{self.path.name}/{self._name(index)}"

    def where(self, index: int) -> str:
        """Tar and image."""
        return f"{self.path}/{self._name(index)}"

    def values(self, index: int) -> dict[str, Any]:
        """The JSON of the image's name."""
        offset, size = map(int, self._texts[index])
        if size < 0:
            raise DataError(
                "there is no .json of the image's name in the tar",
                self.where(index),
                'add one: {"objects": [{"bbox_2d": [x1, y1, x2, y2], "desc": "cat"}]}; [] for a negative',
            )
        try:
            found = json.loads(Member(self.path, "", offset, size).read_bytes())
        except (ValueError, RecursionError) as error:
            what = f"the .json of the image is broken ({error})"
            raise DataError(what, self.where(index), "write the shard again") from error
        return found if isinstance(found, dict) else {"objects": found}

    def line_bytes(self) -> Sequence[int]:
        """Of the JSON."""
        sizes: list[int] = self._texts[:, 1].clip(0).tolist()
        return sizes


def _key(name: str) -> str:
    """What WebDataset groups members by: the path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _is_image(name: PurePosixPath) -> bool:
    return name.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, name.parts))


def open_shard(path: Path) -> Shard:
    """A shard by its ending; raises :class:`DataError` if it is cut, or holds no images."""
    return ParquetShard(path) if path.suffix == SUFFIX else TarShard(path)


def tell_form(shards: Sequence[Shard], path: Path) -> str:
    """Find out how the boxes of shards of one data set are written: by those of its first images.

    Returns:
        In words; empty if none of them is another tool's.
    """
    first = islice(((shard, index) for shard in shards for index in range(len(shard))), LOOKED_AT)
    boxes = [box for shard, index in first for box in shard.boxes(index)]
    corners, why = are_corners(boxes, str(path))
    for shard in shards:
        shard.corners = corners
    return why if boxes else ""
