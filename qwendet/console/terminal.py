"""Text on a terminal, made safe for it: lines, and bars of progress.

Nothing reaches a terminal raw: control characters are shown as escapes, and no text is taken for markup.
What is said, and to whom, :mod:`qwendet.console.console` decides.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qwendet.progress import Advance, Pace

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PLAIN_WIDTH = 160  # characters of a table without a terminal and without COLUMNS

_live: Progress | None = None


def printable(text: str) -> str:
    r"""Show control characters, and others that a terminal would act on, as escapes; line breaks stay.

    Example:
        >>> printable("a\x1b[31mb")
        'a\\x1b[31mb'
    """
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def open_console(*, stderr: bool) -> Console:
    """One of the two streams, in colours where it is a terminal that wants them."""
    from rich.console import Console

    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    is_styled = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Console(
        stderr=stderr,
        highlight=False,
        force_terminal=is_styled,
        color_system="auto" if is_styled else None,
        width=None if is_terminal or os.environ.get("COLUMNS", "").isdigit() else PLAIN_WIDTH,
    )


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print one text as it is: no markup, no wrapping."""
    from rich.text import Text

    console.print(Text(printable(text), style=style), soft_wrap=True)


def print_pairs(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Print ``name  value`` lines under a headline, without those that have no value."""
    from rich.text import Text

    for name, value in pairs:
        if value:
            indented = printable(value).replace("\n", "\n         ")
            console.print(Text.assemble("  ", (f"{name:<6}", "dim"), " ", indented), soft_wrap=True)


# Bars


@contextmanager
def bar(console: Console, description: str, total: int) -> Iterator[Advance]:
    """Show a bar; one that is opened inside another stands below it while it lasts."""
    is_inner = _live is not None
    with _live_bars(console) as bars:
        task = bars.add_task(printable(description), total=total or None, pace="", text="")
        pace = Pace(total)

        def advance(finished: int, text: str) -> None:
            bars.update(task, completed=finished, pace=pace.describe(finished), text=printable(text))

        try:
            yield advance
        finally:
            bars.stop_task(task)
            if is_inner:
                bars.remove_task(task)


@contextmanager
def _live_bars(console: Console) -> Iterator[Progress]:
    """The bars on the terminal, opened by the outermost progress: rich has one live display at a time."""
    global _live
    if _live is not None:
        yield _live
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=max(8, min(40, console.width // 5))),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False, style="dim"),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        _live = bars
        try:
            yield bars
        finally:
            _live = None
