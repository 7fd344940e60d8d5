"""For `make mutants`: a function that a shared fixture calls is tested by every test that uses the fixture.

mutmut notes which functions a test calls, and runs only those tests on a mutant of the function. A fixture of
module or session scope is set up once, so the first test alone would be noted for what the fixture calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from mutmut.state import state

CALLED_BY_FIXTURE: dict[pytest.FixtureDef[Any], set[str]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    called = state()._stats
    before = set(called)
    called.clear()
    try:
        return (yield)
    finally:
        CALLED_BY_FIXTURE[fixturedef] = set(called)
        called |= before


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Function) -> None:
    """Before mutmut's own hook reads and empties the set of called functions."""
    for name in item.fixturenames:
        for fixturedef in item._fixtureinfo.name2fixturedefs.get(name, ()):
            state()._stats.update(CALLED_BY_FIXTURE.get(fixturedef, ()))
