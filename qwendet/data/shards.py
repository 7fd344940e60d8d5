"""Images inside of shards: members of a tar file, as WebDataset has them, or rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from qwendet.data.archives import member_names
from qwendet.data.images import IMAGE_SUFFIXES, decode_image, header_size, image_size, open_image
from qwendet.data.samples import StoredImage, Turn
from qwendet.errors import DataError, EnvironmentLacksError
from qwendet.files import is_hidden

PARQUET_EXTRA = "pip install 'qwendet[parquet]'"
IMAGE_COLUMNS = ("image", "images", "img", "image_path", "path", "file_name", "filename", "jpg", "png")


@dataclass(frozen=True)
class Shard:
    """A file of images.

    Attributes:
        names: of the images, in order.
        read: the file of one, by its place; ``None`` where the names are paths of files.
        num_bytes: of each image's file, or of the shard.
    """

    names: Sequence[str]
    read: Callable[[int], bytes] | None
    num_bytes: Callable[[int], int]

    def turn(self, shard: Path, at: int) -> Turn:
        """A question about an image."""
        if self.read is None:
            return Turn(self.names[at], (), root=shard.parent)
        read = self.read
        content = StoredImage(self.num_bytes(at), lambda: read(at))
        return Turn(f"{shard.name}/{self.names[at]}", (), root=shard.parent, content=content)


def open_turn(turn: Turn, where: str) -> Image.Image:
    """A turn's image as displayed, wherever it is; raises as :func:`open_image`."""
    if turn.content is None:
        return open_image(turn.image, turn.root, where, turn.declared_size)
    return decode_image(turn.content.read(), turn.image, where)


def turn_size(turn: Turn, where: str) -> tuple[int, int]:
    """Width and height of a turn's image as displayed."""
    if turn.content is None:
        return image_size(turn.image, turn.root, where)
    return header_size(turn.content.read(), turn.image, where)


def open_tar(path: Path) -> Shard:
    """The images of a tar file, which is not compressed, so that each can be read by itself."""
    members = member_names(path)
    images = [name for name in members if _is_image(PurePosixPath(name))]
    if not images:
        found = ", ".join(map(repr, members[:3])) or "nothing"
        raise DataError(f"the shard holds no images, but {found}", str(path), "give shards of images")
    return Shard([f"{path.name}/{name}" for name in images], None, lambda _: 0)


def _is_image(name: PurePosixPath) -> bool:
    return name.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, name.parts))


def open_parquet(path: Path) -> Shard:
    """The images of a Parquet file: one column of files, as ``datasets`` writes it, of bytes, or of paths.

    Raises:
        DataError: for a file that is broken or has no such column.
        EnvironmentLacksError: without pyarrow.
    """
    pyarrow, parquet = import_parquet()
    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"expected a whole Parquet file ({error})", str(path), "fetch it again") from error
    schema, types = file.schema_arrow, pyarrow.types
    column = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    kind = None if column is None else schema.field(column).type
    is_struct = kind is not None and types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if kind is None or not (is_struct or types.is_binary(kind) or types.is_string(kind)):
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        wanted = f"one of {', '.join(IMAGE_COLUMNS)}, of files, bytes or paths"
        fix = "rename the column of the images to image"
        raise DataError(f"no column holds images: expected {wanted}, got {found}", str(path), fix)
    rows = file.metadata.num_rows
    if types.is_string(kind):
        return Shard(file.read([column])[column].to_pylist(), None, lambda _: 0)
    starts = [0]
    for number in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(number).num_rows)
    names = [str(number) for number in range(rows)]
    if is_struct and kind.get_field_index("path") >= 0:
        told = file.read([f"{column}.path"])[column].to_pylist()
        names = [row["path"] or name for row, name in zip(told, names, strict=True)]

    @lru_cache(maxsize=2)  # samples are asked for nearly in order
    def group(number: int) -> Any:
        return file.read_row_group(number, [column])[column]

    def read(at: int) -> bytes:
        number = next(number for number, start in enumerate(starts) if at < start) - 1
        cell = group(number)[at - starts[number]].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content:
            raise DataError("the row holds no image", f"{path}: row {at + 1}", "leave the row out")
        return bytes(content)

    return Shard(names, read, lambda _: path.stat().st_size)


def import_parquet() -> tuple[Any, Any]:
    """The libraries that read and write Parquet.

    Raises:
        EnvironmentLacksError: if they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EnvironmentLacksError("Parquet files need pyarrow", "", PARQUET_EXTRA) from error
    return pyarrow, parquet
