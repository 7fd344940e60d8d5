"""Tables as wide as there is room: aligned, else with wrapped texts, else a block of lines for each row.

No number and no word is ever cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

GAP = "  "
LONGEST_WORD = 24
"""Characters of a word above which it may be folded."""


def build_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], are_numbers: Sequence[bool]
) -> tuple[Table, int]:
    """A table for rich, in which texts may wrap between words, and numbers may not.

    With it come the characters that it needs at least.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    least = 1
    for index, (name, is_number) in enumerate(zip(columns, are_numbers, strict=True)):
        width = _least_width(name, [row[index] for row in rows])
        least += width + 3  # a blank on both sides and one between
        table.add_column(
            Text(name), justify="right" if is_number else "left", min_width=width, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table, least


def _least_width(name: str, cells: Sequence[str]) -> int:
    """Characters of a column that split no word, however long its texts are."""
    from rich.cells import cell_len

    words = [word for text in (name, *cells) for word in text.split()]
    return min(LONGEST_WORD, max(map(cell_len, words), default=1))


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
