"""Parquet files with images inside: opened once, read by row, a row group at a time.

a.parquet ─► Table ─► image(7)    the file in row 7        ┐ of the row group that holds the row;
                   └► values(7)   its other columns        ┘ the last few stay in memory
"""

from __future__ import annotations

import os
from bisect import bisect
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from qwendet.errors import DataError, EnvironmentLacksError

SUFFIX = ".parquet"
EXTRA = "pip install 'qwendet[parquet]'"
IMAGE_COLUMNS = ("image", "images", "img", "image_path", "path", "file_name", "filename", "jpg", "png")
FEDERATED = ("neg_labels", "not_exhaustive_labels")
FIELDS = ("objects", "annotations", "categories", "width", "height", "labels", *FEDERATED)
OPEN_FILES, GROUPS = 64, 2
"""Files that stay open, and row groups, of images and of other columns, that stay in memory; a process."""


class Table:
    """A Parquet file with a column of images: of files, as ``datasets`` writes it, of bytes, or of paths.

    Args:
        path: the file.

    Attributes:
        column: the images'.
        holds_files: whether they are inside; else the column names files.
        others: columns of what is said of an image.
        shown: every column and its type, for messages.

    Raises:
        DataError: if it is broken or has no such column.
        EnvironmentLacksError: without pyarrow.
    """

    def __init__(self, path: Path) -> None:
        pyarrow, parquet = import_parquet()
        self.path = path
        self._errors = (pyarrow.ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(path)
        except self._errors as error:
            raise self._broken(error) from error
        schema, types = self._file.schema_arrow, pyarrow.types
        self.metadata: dict[bytes, bytes] = schema.metadata or {}
        self.shown = ", ".join(f"{field.name} ({field.type})" for field in schema)
        self.column = next((name for name in IMAGE_COLUMNS if name in schema.names), "")
        kind = schema.field(self.column).type if self.column else None
        is_struct = kind is not None and types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if kind is None or not (is_struct or types.is_binary(kind) or types.is_string(kind)):
            wanted = f"one of {', '.join(IMAGE_COLUMNS)}, of files, bytes or paths"
            what = f"no column holds images: expected {wanted}, got {self.shown}"
            raise DataError(what, str(path), "rename the column of the images to image")
        self.holds_files = not types.is_string(kind)
        self._images = f"{self.column}.bytes" if is_struct else self.column
        self.others = [name for name in schema.names if name in FIELDS]
        has_path = is_struct and kind.get_field_index("path") >= 0
        self._others = [*self.others, *([f"{self.column}.path"] if has_path else [])]
        self._others += [] if self.holds_files else [self.column]
        groups = map(self._file.metadata.row_group, range(self._file.num_row_groups))
        self._starts: list[int] = list(accumulate((group.num_rows for group in groups), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def image(self, row: int) -> bytes:
        """The file of an image; raises :class:`DataError` where the row has none."""
        number = bisect(self._starts, row) - 1
        content: bytes | None = _group_of_images(self, number)[row - self._starts[number]].as_py()
        if not content:
            path = self.values(row).get(self.column)
            what = f"the row names the image {path['path']!r} and does not hold it" if path else ""
            fix = "write the file with its images inside, or leave the row out"
            raise DataError(what or "the row holds no image", self.where(row), fix)
        return content

    def values(self, row: int) -> dict[str, Any]:
        """What a row says of its image: :attr:`others`, and its path in the images' column."""
        if not self._others:
            return {}
        number = bisect(self._starts, row) - 1
        rows = _group(self, number).slice(row - self._starts[number], 1).to_pylist()
        found: dict[str, Any] = rows[0]
        return found

    def where(self, row: int) -> str:
        """File and row, counted from 0."""
        return f"{self.path}: row {row}"

    def kind(self, column: str) -> str:
        """The type of a column, in words."""
        return str(self._file.schema_arrow.field(column).type)

    def each(self, column: str) -> Any:
        """A column, one row group after the other."""
        for group in range(self._file.num_row_groups):
            yield self._read(group, (column,))[column]

    def _read(self, number: int, columns: tuple[str, ...]) -> Any:
        try:
            return self._file.read_row_group(number, list(columns), use_threads=False)
        except self._errors as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> DataError:
        return DataError(f"expected a whole Parquet file ({error})", str(self.path), "fetch it again")


@lru_cache(maxsize=GROUPS)
def _group_of_images(table: Table, number: int) -> Any:
    column = table._read(number, (table._images,)).column(0).combine_chunks()
    return column.field(0) if "." in table._images else column


@lru_cache(maxsize=GROUPS)
def _group(table: Table, number: int) -> Any:
    return table._read(number, tuple(table._others))


def open_table(path: Path) -> Table:
    """A Parquet file, opened once by each process as long as it stays as it is; raises as :class:`Table`."""
    status = path.stat()
    return _opened(path, status.st_size, status.st_mtime_ns, os.getpid())


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: Path, size: int, changed: int, process: int) -> Table:
    return Table(path)


def import_parquet() -> tuple[Any, Any]:
    """The libraries that read and write Parquet.

    Raises:
        EnvironmentLacksError: if they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EnvironmentLacksError("Parquet files need pyarrow", "", EXTRA) from error
    return pyarrow, parquet
