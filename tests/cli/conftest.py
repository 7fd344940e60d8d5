"""A command run in this process, with what it printed and how it ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from qwendet.cli.main import run


class Ending(NamedTuple):
    code: int
    out: str
    err: str


Qwendet = Callable[..., Ending]


@pytest.fixture
def qwendet(capsys: pytest.CaptureFixture[str]) -> Iterator[Qwendet]:
    """Run a command in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*words: str | Path) -> Ending:
        with pytest.raises(SystemExit) as ending:
            run([str(word) for word in words])
        out, err = capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return Ending(ending.value.code, out, err)

    yield call
    signal.signal(signal.SIGTERM, handler)
