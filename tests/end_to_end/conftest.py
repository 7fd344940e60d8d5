"""What several end-to-end tests need."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator

import pytest
from selenium import webdriver


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
