"""Open Images' tables of boxes, a row a box, in fractions of the image; rows of one image stand together."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from qwendet.data.formats.drawn import Drawn, Shape, numbers
from qwendet.data.formats.records import Item, Labels, or_problems
from qwendet.errors import DataError, Problem
from qwendet.files import list_folder

DESCRIPTIONS = "class-descriptions"
"""How the table begins that has the names of the classes."""


def read_openimages(file: Path) -> Iterator[Drawn | Item]:
    """Read a table; few people have all of its images: those that are not there are counted.

    Raises:
        DataError: if there is no table of the classes' names, where labels are its codes.
    """
    names = _names(file)
    yield Labels(tuple(dict.fromkeys(names.values())))
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            yield from _images(file, names, csv.DictReader(opened))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"expected a table in UTF-8 ({error})", str(file), "fetch it again") from error


def _images(file: Path, names: Mapping[str, str], table: Iterable[dict[str, str]]) -> Iterator[Drawn | Item]:
    done: set[str] = set()
    rows = enumerate(table, start=2)
    for image, group in groupby(rows, key=lambda pair: pair[1].get("ImageID") or ""):
        own = list(group)
        where = f"{file}:{own[0][0]}"
        if image in done:
            yield Problem(f"the rows of {image!r} are not together", where, "sort the table by ImageID")
            continue
        done.add(image)
        yield from or_problems(_drawn(image, [(row, f"{file}:{line}") for line, row in own], names))


def _drawn(
    image: str, rows: Sequence[tuple[Mapping[str, str], str]], names: Mapping[str, str]
) -> Iterator[Drawn]:
    shapes = [_shape(row, names, where) for row, where in rows]
    yield Drawn(rows[0][1], image, shapes, in_fractions=True, may_lack=True)


def _names(file: Path) -> dict[str, str]:
    """Names by code, of the table beside the file or in the folder above."""
    tables = [found for folder in (file.parent, file.parent.parent) for found in list_folder(folder)]
    table = next((found for found in tables if DESCRIPTIONS in found.name and found.suffix == ".csv"), None)
    if table is None:
        return {}
    with table.open(encoding="utf-8-sig", newline="") as opened:
        return {row[0]: row[1] for row in csv.reader(opened) if len(row) == 2 and row[0] != "LabelName"}


def _shape(row: Mapping[str, str], names: Mapping[str, str], where: str) -> Shape:
    code = row.get("LabelName") or ""
    if code.startswith("/m/") and code not in names:
        fix = f"put Open Images' {DESCRIPTIONS}-boxable.csv beside the table"
        raise DataError(f"there is no name for the class {code!r}", where, fix)
    x1, x2, y1, y2 = values = numbers(row, "XMin XMax YMin YMax", where)
    if max(values) > 1.1:
        raise DataError(f"expected fractions of the image, got {values}", where, "divide pixels by its size")
    flags = {"crowd": row.get("IsGroupOf")}
    return Shape(names.get(code, code), [(x1, y1), (x2, y2)], where, attributes=flags)
