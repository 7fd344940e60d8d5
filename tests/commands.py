"""A command run in this process, with what it printed and how it ended."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from qwendet.cli.main import run


class Ending(NamedTuple):
    code: int
    out: str
    err: str


Qwendet = Callable[..., Ending]


def run_command(*words: str | Path) -> Ending:
    """Run a command as a terminal would, but for the imports, which take seconds in a new process."""
    handler = signal.getsignal(signal.SIGTERM)
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ending,
    ):
        run([str(word) for word in words])
    signal.signal(signal.SIGTERM, handler)
    assert isinstance(ending.value.code, int)
    return Ending(ending.value.code, out.getvalue(), err.getvalue())
