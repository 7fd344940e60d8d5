"""Data sets of the hub with ``objects``: an image folder's ``metadata.jsonl``, or Parquet with images inside.

a.parquet ─► unpacked once into an image folder ─► metadata.jsonl ─► form of the boxes, told by all ─► Drawn
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import Field

from qwendet.data.formats.conversation_layouts import records
from qwendet.data.formats.drawn import Drawn, Number, Row, Shape, corners, read_as
from qwendet.data.formats.records import Finding, Item
from qwendet.data.images import image_size
from qwendet.errors import DataError, EnvironmentLacksError
from qwendet.files import atomic_folder, find_folder
from qwendet.progress import track

METADATA = "metadata.jsonl"
LABELS = ("category", "categories", "label", "labels", "class", "name", "category_id")
ROUNDING = 1
"""Pixels by which a box may leave its image, whichever way it is written."""


class _Object(Row):
    bbox: tuple[Number, Number, Number, Number]


class _Image(Row):
    file_name: str
    objects: dict[str, list[Any]] | list[dict[str, Any]] = Field(default_factory=list)
    where: str = ""


def read_huggingface(file: Path) -> Iterator[Drawn | Item]:
    """Read the metadata of an image folder.

    Raises:
        DataError: if its boxes are neither as COCO writes them nor corners.
    """
    is_corners, told = _are_corners(file)
    yield Finding("frame", f"{file}: {told}")
    for place, value in records(file):
        try:
            image, where, found = _read(value, place)
            shapes = [_shape(own, is_corners, f"{where}: objects[{at}]") for at, own in enumerate(found)]
            yield Drawn(where, image.file_name, shapes)
        except DataError as error:
            yield from error.problems


class _Boxed(NamedTuple):
    """A box as it is written, and all that is said of it."""

    box: tuple[float, float, float, float]
    values: Mapping[str, Any]


def _read(value: Any, place: str) -> tuple[_Image, str, list[_Boxed]]:
    image = read_as(_Image, value, place)
    where = image.where or place
    older = dict.fromkeys(("bboxes", "box", "boxes"), "bbox")
    rows = _rows(image.objects, where)
    return image, where, [_Boxed(read_as(_Object, own, where, **older).bbox, own) for own in rows]


def _rows(
    objects: Mapping[str, Sequence[Any]] | Sequence[dict[str, Any]], where: str
) -> list[dict[str, Any]]:
    """Objects one by one, however they are written: a list of them, or a list of each of their values."""
    if not isinstance(objects, Mapping):
        return list(objects)
    try:
        return [dict(zip(objects, own, strict=True)) for own in zip(*objects.values(), strict=True)]
    except ValueError as error:
        counts = ", ".join(f"{len(own)} {key}" for key, own in objects.items())
        what = f"objects: expected as many of each, got {counts}"
        raise DataError(what, where, "give each box one of each") from error


def _are_corners(file: Path) -> tuple[bool, str]:
    """Whether boxes are corners and not, as documented, COCO's; by how many are impossible either way."""
    count = as_coco = as_corners = 0
    for place, value in records(file):
        try:
            image, where, found = _read(value, place)
            width, height = image_size(image.file_name, file.parent, where)
        except DataError:  # told when it is read
            continue
        count += len(found)
        for (x, y, right, low), _ in found:
            as_coco += x + right > width + ROUNDING or y + low > height + ROUNDING
            as_corners += right <= x or low <= y or right > width + ROUNDING or low > height + ROUNDING
    told = f"of {count} boxes {as_coco} are impossible as COCO's, {as_corners} as corners"
    if min(as_coco, as_corners) > count / 2:
        raise DataError(
            f"the boxes are in no known form: {told}", str(file), "write [x, y, width, height] in pixels"
        )
    is_corners = as_corners < as_coco
    return is_corners, f"{'[x1, y1, x2, y2]' if is_corners else '[x, y, width, height]'} ({told})"


def _shape(found: _Boxed, is_corners: bool, where: str) -> Shape:
    x, y, right, low = found.box
    if not is_corners and min(right, low) < 0:
        raise DataError(f"expected a width and a height, got {found.box}", where, "correct it")
    label = next((found.values[name] for name in LABELS if name in found.values), None)
    points = [(x, y), (right, low)] if is_corners else corners(x, y, right, low)
    return Shape(label, points, where, attributes=found.values)


def unpacked(files: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Parquet files as an image folder, which stays in the cache (``XDG_CACHE_HOME``) for the next time.

    Returns:
        The folder, and the metadata of each file in it.

    Raises:
        EnvironmentLacksError: without pyarrow.
        DataError: if they cannot be read, or hold no images.
    """
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwendet" / "parquet"
    target = home / sha256(repr(facts).encode()).hexdigest()[:16]
    if not find_folder(target):
        with atomic_folder(target) as staging, track("unpacking images", len(files)) as advance:
            for number, file in enumerate(files):
                _unpack(file, staging / f"{file.stem}-{number}")
                advance(number + 1, file.name)
    return target, [target / f"{file.stem}-{number}" / METADATA for number, file in enumerate(files)]


def _unpack(file: Path, folder: Path) -> None:
    """Write the images of a file, and what it says of each as a line of metadata."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        fix = "pip install 'qwendet[parquet]'"
        raise EnvironmentLacksError("reading Parquet needs pyarrow", str(file), fix) from error
    folder.mkdir()
    try:
        table = parquet.ParquetFile(file)
        names = _names(table.schema_arrow.metadata or {})
        with (folder / METADATA).open("w", encoding="utf-8") as lines:
            number = 0
            for batch in table.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    lines.write(_line(row, number, names, file, folder))
                    number += 1
    except pyarrow.ArrowException as error:
        raise DataError(f"the Parquet file cannot be read ({error})", str(file), "fetch it again") from error


def _line(row: Mapping[str, Any], number: int, names: Sequence[str], file: Path, folder: Path) -> str:
    """A row as a line of metadata; its image is written."""
    where = f"{file}: row {number}"
    image = next((value for value in row.values() if isinstance(value, dict) and value.get("bytes")), None)
    if image is None:
        raise DataError(
            "the row holds no image: expected a column of bytes and path", where, "embed the images"
        )
    suffix = PurePosixPath(image.get("path") or "").suffix or ".png"
    name = f"{number:08}{suffix}"
    (folder / name).write_bytes(image["bytes"])
    objects = [
        {key: _name(names, value) if key in LABELS else value for key, value in own.items()}
        for own in _rows(row.get("objects") or [], where)
    ]
    return json.dumps({"file_name": name, "objects": objects, "where": where}, default=str) + "\n"


def _name(names: Sequence[str], value: Any) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _names(metadata: Mapping[bytes, bytes]) -> list[str]:
    """Names of the class labels of ``objects``, as the ``datasets`` library notes them in the schema."""
    waiting: list[Any] = [json.loads(metadata.get(b"huggingface", b"{}"))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and value.get("_type") == "ClassLabel":
            return list(map(str, value.get("names", ())))
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += inner
    return []
