"""Tables: which columns hold the coordinates, and the box of a row of Markdown or of ``red car,1,2,3,4``.

    | object  | x1 | y1 | x2 | y2 |
    |---------|----|----|----|----|
    | red car | 1  | 2  | 3  | 4  |

The patterns are for ``re.VERBOSE | re.MULTILINE``; a text costs time linear in its length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from qwendet.answers.keys import coordinate_index

# A line above one of dashes, and any other line of a table; not those with boxes in brackets, which are
# read without their columns.
HEADER = r"""
    ^[\ \t]*+\|(?:[^\r\n\[(（［【]++|[\[(（［【](?!\s*+[-+.\d]))*+
    (?=\r?\n[\ \t]*+\|[\ \t]*+:?-[-|:\ \t]*+$)
"""
_PLAIN = r"[-+]?[0-9]++(?:\.[0-9]++)?"
ROW = rf"""
    ^[\ \t]*+\|[^\r\n\[\](){{}}<>（）［］【】]*+$
  | ^[\ \t]*+(?:[-*•]\ )?[^\W\d][^\r\n\t,，|:：=\[\](){{}}<>]{{0,80}}+
    (?:[,，\t]\ ?{_PLAIN}){{4}}(?=[\ \t]*+(?:[\r\n<]|\Z))
"""
_NUMBER = re.compile(rf"{_PLAIN}(?:px|%)?")
_FOUR = re.compile(rf"{_PLAIN}(?:[,，\s]\s*{_PLAIN}){{3}}")


class TableRow(NamedTuple):
    """What a row says of its box: the name, and as many of the four numbers as stand there."""

    name: str
    numbers: list[float]


def coordinate_columns(header: str) -> list[int]:
    """The columns of x1, y1, x2 and y2; empty if the header does not name all of them.

    Example:
        >>> coordinate_columns("| name | x_min | x_max | y_min | y_max |"), coordinate_columns("| x | y |")
        ([1, 3, 2, 4], [])
    """
    places: dict[int, int] = {}
    for column, cell in enumerate(_cells(header)):
        index = coordinate_index(cell)
        if index is not None:
            places.setdefault(index + 2 if index < 2 and index in places else index, column)  # x1 after x0
    return [places[index] for index in range(4)] if all(index in places for index in range(4)) else []


def read_row(row: str, columns: list[int] | None) -> TableRow:
    """Read a row of a table.

    Args:
        row: the line.
        columns: those of the coordinates; ``None`` if the table has no header, empty if it names none.

    Example:
        >>> read_row("| 1 | **car** | 1 | 2 | 3 | 4 |", [2, 3, 4, 5])
        TableRow(name='car', numbers=[1.0, 2.0, 3.0, 4.0])
        >>> read_row("| car | 1, 2, 3, 4 |", [])
        TableRow(name='car', numbers=[1.0, 2.0, 3.0, 4.0])
    """
    cells = _cells(row)
    if "|" not in row:
        columns = None
    numeric = [index for index, cell in enumerate(cells) if _NUMBER.fullmatch(cell)]
    if whole := [index for index, cell in enumerate(cells) if _FOUR.fullmatch(cell)]:
        first, written = whole[0], re.split(r"[,，\s]+", cells[whole[0]])
    elif columns:
        first = min(columns)
        written = [cells[column] for column in columns if column in numeric]
    elif columns is None and len(numeric) == 4 and numeric[3] - numeric[0] == 3:
        first, written = numeric[0], [cells[index] for index in numeric]
    else:
        return TableRow("", [])
    names = [cell for index, cell in enumerate(cells[:first]) if cell and index not in numeric]
    return TableRow(names[-1] if names else "", [float(number.rstrip("px%")) for number in written])


def _cells(line: str) -> list[str]:
    line = line.strip()
    cells = line.removeprefix("|").removesuffix("|").split("|") if "|" in line else re.split(r"[,，\t]", line)
    return [cell.strip(" \t*`•-") if not _NUMBER.fullmatch(cell.strip()) else cell.strip() for cell in cells]
