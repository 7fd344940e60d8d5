"""Tables as wide as there is room: aligned, else with wrapped texts, else a block of lines for each row.

No number and no word is ever cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

GAP = "  "


def build_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], are_numbers: Sequence[bool]
) -> Table:
    """A table for rich, in which texts may wrap between words, and numbers may not.

    Args:
        title: stands above it.
        columns: names of the columns.
        rows: texts of the cells.
        are_numbers: for each column, whether it is aligned right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for name, is_number in zip(columns, are_numbers, strict=True):
        table.add_column(
            Text(name), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def stacked_lines(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The same where it is too wide: a block for each row, a line for each of its cells.

    Example:
        >>> stacked_lines("T", ("label", "AP"), [("cat", "0.5"), ("dog", "0.25")])
        ['T', '', '  label  cat', '  AP     0.5', '', '  label  dog', '  AP     0.25', '']
    """
    width = max(map(len, columns), default=0)
    lines = [title, ""]
    for row in rows:
        lines += [f"{GAP}{name:<{width}}{GAP}{cell}" for name, cell in zip(columns, row, strict=True)]
        lines.append("")
    return lines
