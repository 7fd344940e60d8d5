"""For `make mutants`: the tests that use a shared fixture test what the fixture calls; and speed.

mutmut notes which functions a test calls, and runs only those tests on a mutant of the function. A fixture of
module or session scope is set up once, so the first test alone would be noted for what the fixture calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from mutmut.state import state

from qwendet.config.schema import Config, DataConfig, ModelConfig
from qwendet.loader import load

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long: training, real data, a megabyte of noise; what needs no model goes first."""

    def uses(item: pytest.Item, fixture: str) -> bool:
        return fixture in getattr(item, "fixturenames", ())

    names = ("published", "noise", "nesting")
    slow = [item for item in items if uses(item, "detector64") or any(name in item.name for name in names)]
    config.hook.pytest_deselected(items=slow)
    items[:] = sorted((item for item in items if item not in slow), key=lambda item: uses(item, "bundle"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The server that forks the workers only collects: what it has loaded, they load four times faster."""
    if session.config.option.collectonly:
        model, data = ModelConfig(path="tiny-untrained", device="cpu"), DataConfig(labels=("x",))
        load(Config(model=model, data=data), for_inference=False)
