"""The only module that prints: results and JSON on stdout; logs, progress and errors on stderr.

Nothing that was read from a file reaches a terminal raw: control characters are shown as escapes, and no
text is taken for markup. Without a terminal, or with ``NO_COLOR``, there are no colours and no bars.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qwendet.console.check_formats import to_github, to_json, to_junit
from qwendet.console.terminal import bar, open_console, print_pairs, print_text, printable
from qwendet.errors import QwendetError, Result, Status
from qwendet.inference.sharding import is_first_process
from qwendet.progress import Advance, PlainProgress, no_advance

if TYPE_CHECKING:
    from rich.console import Console

Format = Literal["human", "json", "junit", "github"]

BUG_REPORT = "please report it, with the output of the same command with --debug"
NOISY_LIBRARIES = r"(torch|transformers|accelerate|huggingface_hub)(\.|$)"
LONGEST_WORD = 24
"""Characters of a word in a table above which it may be folded."""
STYLES: dict[Status, str] = {"pass": "green", "fail": "bold red", "skip": "yellow"}


@dataclass
class _State:
    """How this process prints; :func:`setup` sets it."""

    format: Format = "human"
    debug: bool = False
    quiet: bool = False
    stdout: Console | None = None
    stderr: Console | None = None


_state = _State()


def setup(*, debug: bool, quiet: bool) -> None:
    """Start anew: human output, the ``qwendet`` logger on stderr, other libraries quiet.

    ``debug`` logs everything and shows tracebacks, ``quiet`` leaves warnings and errors; processes of a
    distributed run other than the first are always quiet.
    """
    global _state
    _state = _State(debug=debug, quiet=quiet or not is_first_process())
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("qwendet")
    logger.handlers = [_StderrHandler()]
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if _state.quiet else logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:  # read by these libraries when they are imported
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        warnings.filterwarnings("ignore", module=NOISY_LIBRARIES)
        if "transformers" in sys.modules:  # it has read the above already
            sys.modules["transformers"].utils.logging.disable_progress_bar()


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        prefix = f"{record.levelname.lower()}: " if is_warning or record.levelno < logging.INFO else ""
        print_text(_stderr(), prefix + record.getMessage(), "yellow" if is_warning else "")


def set_format(output_format: Format) -> None:
    """Choose how results and errors are printed from now on."""
    _state.format = output_format


def _stdout() -> Console:
    if _state.stdout is None:
        _state.stdout = open_console(stderr=False)
    return _state.stdout


def _stderr() -> Console:
    if _state.stderr is None:
        _state.stderr = open_console(stderr=True)
    return _state.stderr


# Lines and tables


def say(text: str) -> None:
    """Print a line of information on stderr."""
    if not _state.quiet:
        print_text(_stderr(), text)


def next_step(command: str, first: str = "") -> None:
    """Print on stderr what to run next; nothing where the output is for a machine."""
    if not _state.quiet and not is_for_machine():
        print_text(_stderr(), f"Next: {first}, then {command}" if first else f"Next: {command}", "bold")


def print_lines(lines: Iterable[str]) -> None:
    """Print results on stdout, a line each: as they are, but on a terminal without control characters."""
    for line in lines:
        print(printable(line) if sys.stdout.isatty() else line)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout: numbers are aligned right, floats have four digits, ``None`` is a dash.

    Texts wrap between words. Where there is no room for that, each row is a block, with a line for each cell.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    names, cells = [printable(name) for name in columns], [[_cell(value) for value in row] for row in rows]
    table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD)
    least = 1
    for index, name in enumerate(names):
        words = [word for text in (name, *(row[index] for row in cells)) for word in text.split()]
        width = min(LONGEST_WORD, max(map(cell_len, words), default=1))
        least += width + 3  # a blank on both sides and one between
        is_number = all(isinstance(row[index], int | float | None) for row in rows)
        side: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(Text(name), justify=side, min_width=width, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    if least <= _stdout().width:
        _stdout().print(table)
        return
    print_text(_stdout(), f"{printable(title)}\n")
    widest = max(map(len, names))
    for row in cells:
        lines = (f"  {name:<{widest}}  {cell}\n" for name, cell in zip(names, row, strict=True))
        print_text(_stdout(), "".join(lines))


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–" if value is None else printable(str(value))


def is_for_machine() -> bool:
    """Whether results are printed for a program, and not for people."""
    return _state.format != "human"


def print_record(record: Mapping[str, Any], *, ok: bool = True) -> None:
    """Print results as the one object that ``--format json`` promises, beside ``ok`` and no checks."""
    print(json.dumps({"ok": ok, "checks": [], **record}, indent=2))


# Errors and checks


def report_error(error: QwendetError) -> None:
    """Print every problem of an error: what, where, fix; on stdout after ``set_format`` other than human."""
    if _state.format != "human":
        report_checks([Result(p.id or error.id, "fail", p.what, p.where, p.fix) for p in error.problems])
    else:
        for problem in error.problems:
            print_text(_stderr(), f"Error: {problem.what}", "bold red")
            print_pairs(_stderr(), [("where", problem.where), ("fix", problem.fix)])
        if len(error.problems) > 1:
            print_text(_stderr(), f"{len(error.problems)} problems", "bold red")
    if _state.debug:
        print_text(_stderr(), traceback.format_exc())


def report_bug(error: Exception) -> None:
    """Print an error that is no fault of the user's; its traceback only with ``--debug``."""
    report_error(QwendetError(f"this is a bug: {type(error).__name__}: {error}", fix=BUG_REPORT))


def report_checks(results: Sequence[Result]) -> None:
    """Print the results of checks on stdout, in the format that was set."""
    if _state.format == "json":
        print(to_json(results))
    elif _state.format == "junit":
        print(to_junit(results))
    elif _state.format == "github":
        for command in to_github(results, Path.cwd()):
            print(command)
        print(_summary(results))
    else:
        _print_checks(results)


@contextmanager
def nothing_but_results() -> Iterator[None]:
    """What libraries print until the end of the block goes to stderr, where results are for a machine."""
    if _state.format == "human":
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def _summary(results: Sequence[Result]) -> str:
    counts = Counter(result.status for result in results)
    seconds = sum(result.seconds for result in results)
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped in {seconds:.1f} s"


def _print_checks(results: Sequence[Result]) -> None:
    from rich.text import Text

    width = max((len(result.id) for result in results), default=0)
    for result in results:
        status = (result.status, STYLES[result.status])
        line = Text.assemble(status, f"  {printable(result.id):<{width}}  ", printable(result.what))
        _stdout().print(line, soft_wrap=True)
        print_pairs(_stdout(), [("where", result.where), ("fix", result.fix)])
    is_good = all(result.status != "fail" for result in results)
    print_text(_stdout(), _summary(results), STYLES["pass" if is_good else "fail"])


# Progress


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """Show how far work is: a bar on a terminal, else a line about every tenth or 30 s, on stderr."""
    if _state.quiet:
        yield no_advance
    elif _stderr().is_terminal:
        with bar(_stderr(), description, total) as advance:
            yield advance
    else:
        yield PlainProgress(description, total, say)
