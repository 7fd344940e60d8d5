"""What several end-to-end tests need."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these run a whole command: `make check` leaves them out."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def by_ranks() -> Iterator[Callable[[str, Path, Path, int], list[int]]]:
    """Do a job of ranks.py, whose one process imports torch for all tests; the exit codes of its ranks."""
    command = [sys.executable, str(Path(__file__).with_name("ranks.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answered = process.stdin, process.stdout

        def do(job: str, config: Path, out: Path, ranks: int) -> list[int]:
            out.mkdir(exist_ok=True)
            print(json.dumps([job, str(config), str(out), ranks]), file=asked, flush=True)
            codes: list[int] = json.loads(answered.readline())
            return codes

        yield do
        asked.close()


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    """A headless Chromium; skips where there is none."""
    from benchmarks.report_page import browser

    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found: apt-get install chromium chromium-driver")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # selenium's own sockets
        with browser() as driver:
            yield driver
