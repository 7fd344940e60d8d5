"""Printing: plain where there is no terminal, bars where there is one, nothing raw."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from qwendet.console import console
from qwendet.errors import ConfigError, Problem, Result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def fresh_console(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    console.setup(debug=False, quiet=False)
    yield
    console.setup(debug=False, quiet=False)


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_error__lists_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    console.report_error(ConfigError.of([Problem("bad", "a.yaml:1", "fix it"), Problem("worse\nby far")]))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Error: bad\n  where  a.yaml:1\n  fix    fix it\nError: worse\nby far\n2 problems\n"


def test_error__is_red_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    console.report_error(ConfigError("bad"))
    assert "\x1b[1;31mError: bad\x1b[0m" in terminal.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_terminal_without_colour__gets_no_escapes(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    terminal = on_terminal(monkeypatch)
    console.report_error(ConfigError("bad"))
    with console.progress("reading", 2) as advance:
        advance(2, "")
    assert "\x1b" not in terminal.getvalue()
    assert "reading: 2/2" in terminal.getvalue()


def test_checks__human(capsys: pytest.CaptureFixture[str]) -> None:
    console.report_checks(
        [
            Result("config.a", "pass", "all well", seconds=0.04),
            Result("config.bb", "fail", "a [red]thing\x07", "x.jsonl:3", "fix it", 0.5),
            Result("config.c", "skip", "data.val not set"),
        ]
    )
    assert capsys.readouterr().out == (
        "pass  config.a   all well\n"
        "fail  config.bb  a [red]thing\\x07\n"
        "  where  x.jsonl:3\n"
        "  fix    fix it\n"
        "skip  config.c   data.val not set\n"
        "1 passed, 1 failed, 1 skipped in 0.5 s\n"
    )


TENTHS = [(step, step * 0.5) for step in range(101)]


@pytest.mark.parametrize(
    ("total", "calls", "count", "first", "last"),
    [
        pytest.param(
            100, TENTHS, 10, "10/100, 2.0/s, 0:00:45 left, loss 10", "100/100, 2.0/s, loss 100", id="tenths"
        ),
        pytest.param(
            1000,
            [(step, step * 20.0) for step in range(4)],
            1,
            "2/1000, 20.0 s each, 5:32:40 left, loss 2",
            "2/1000, 20.0 s each, 5:32:40 left, loss 2",
            id="slow work: every half minute",
        ),
        pytest.param(
            100,
            [(80, 0.0), (100, 10.0)],
            1,
            "100/100, 2.0/s, loss 100",
            "100/100, 2.0/s, loss 100",
            id="resumed work: its rate from there",
        ),
    ],
)
def test_plain_progress(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    calls: list[tuple[int, float]],
    count: int,
    first: str,
    last: str,
) -> None:
    """Calls are what is done and the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with console.progress("training", total) as advance:
        for done, now[0] in calls:
            advance(done, f"loss {done}")
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[0], lines[-1]) == (count, f"training: {first}", f"training: {last}")


def test_quick_work__prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("reading", 50) as advance:
        for done in range(51):
            advance(done, "")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_bars__stand_below_each_other_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with console.progress("outer\x1b]0;", 2) as outer:
        outer(1, "loss [b]1[/b]")
        with console.progress("inner", 3) as inner:
            inner(3, "")
        console.say("a line")
        outer(2, "")
    shown = terminal.getvalue()
    assert "outer\\x1b]0;" in shown
    assert "loss [b]1[/b]" in shown
    assert "inner" in shown
    assert "2/2" in shown
    assert "a line" in shown


def test_quiet__leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup(debug=False, quiet=True)
    console.say("a line")
    console.next_step("qwendet train x")
    with console.progress("reading", 1) as advance:
        advance(1, "")
    logging.getLogger("qwendet").info("detail")
    logging.getLogger("qwendet").warning("careful")
    console.report_error(ConfigError("bad"))
    assert capsys.readouterr().err == "warning: careful\nError: bad\n"


def test_helper_process__is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    console.setup(debug=False, quiet=False)
    console.say("a line")
    assert capsys.readouterr().err == ""


def test_logger__goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("qwendet").info("device: %s", "cpu")
    logging.getLogger("qwendet").debug("detail")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "device: cpu\n")


WIDE = (
    ("label", "boxes", "AP", "AP50", "precision", "recall", "F1", "mean IoU", "own best score"),
    [
        ("traffic light with a rather long name", 12, 0.25, 0.5, 0.75, 1.0, 0.125, 0.5, None),
        ("黄色的螺丝", 1_000_000, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    ],
)
PATHS = (
    ("file", "what was found in it, in a few words"),
    [("a/very/long/path/that/holds/no/blank/at/all/and/goes/on/instances_train2017.json", "two images " * 9)],
)


@pytest.mark.parametrize("columns", [60, 120])
@pytest.mark.parametrize(("name", "table"), [("wide", WIDE), ("paths", PATHS)])
def test_table__is_as_wide_as_there_is_room_and_cuts_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    golden: Callable[[str, str], None],
    name: str,
    table: tuple[tuple[str, ...], list[tuple[object, ...]]],
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    console.setup(debug=False, quiet=False)
    console.print_table(f"Labels ({name})", *table)
    out = capsys.readouterr().out
    golden(f"tables/{name}.{columns}.txt", "\n".join(line.rstrip() for line in out.splitlines()) + "\n")
    assert "…" not in out
    joined = "".join(out.split())
    for row in table[1]:
        for cell in row:
            shown = f"{cell:.4f}" if isinstance(cell, float) else "–" if cell is None else str(cell)
            assert all(word in joined for word in shown.split() if name == "wide")


def test_table__without_a_terminal_keeps_its_width_unless_columns_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    console.setup(debug=False, quiet=False)
    console.print_table("T", *WIDE)
    assert "own best score" in capsys.readouterr().out


def test_next_step__is_not_said_to_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    console.next_step("qwendet train x", "fix what failed")
    console.set_format("json")
    console.next_step("qwendet train x")
    assert capsys.readouterr().err == "Next: fix what failed, then qwendet train x\n"


def test_record__says_ok_unless_it_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_record({"files": 1}, ok=False)
    assert json.loads(capsys.readouterr().out) == {"ok": False, "checks": [], "files": 1}


def test_table__aligns_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table("T", ("name", "n"), [("a", 1), ("[b]", 200), ("c", None)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == ["  name     n", " ────────────", "  a        1", "  [b]    200", "  c        –", ""]
