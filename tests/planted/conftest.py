"""A sound project that bugs are planted into: a small model, 24 scenes, demonstrations, a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from qwendet.config.load import load_config, override_config
from qwendet.config.schema import Config
from qwendet.errors import Result
from qwendet.loader import Bundle, load
from tests.planted.by_family import FIRST
from tests.planted.large import take_for_large, write_deep_model
from tests.planted.start import settings_of

RunChecks = Callable[[Bundle, set[str]], list[Result]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is repeated, unless it is asked for; of large models there is one family."""
    left_out = [item for item in items if not _is_run(item, config)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_run(item: pytest.Item, config: pytest.Config) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if config.getoption("--large"):  # tests of the project are of small models
        is_of_project = "bug" in params and params["bug"].check.startswith("test.")
        return params.get("family") in (None, FIRST) and not is_of_project
    return config.getoption("--every-family") or item.get_closest_marker("repeated") is None


@pytest.fixture(scope="session")
def small_config(repo_root: Path) -> Config:
    """The config of examples/tiny.yaml: no bug in it."""
    return load_config(repo_root / "examples" / "tiny.yaml", ["model.device=cpu", "train.batch_size=4"])


@pytest.fixture(scope="session")
def large_model(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings for the embedded model with 36 layers in bfloat16."""
    folder = tmp_path_factory.mktemp("large") / "model"
    write_deep_model(small_config, folder)
    return [f"model.path={folder}", "model.dtype=bfloat16"]


@pytest.fixture(scope="session")
def is_large(request: pytest.FixtureRequest) -> bool:
    """Whether bugs are planted into a large model's project, by ``--large``."""
    return bool(request.config.getoption("--large"))


@pytest.fixture(autouse=True)
def of_size(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take models for large ones, with ``--large``."""
    if is_large:
        take_for_large(monkeypatch)


@pytest.fixture(scope="session")
def settings_of_size(is_large: bool, request: pytest.FixtureRequest) -> list[str]:
    """Settings of a sound project beside its own: with ``--large`` those of the large model."""
    settings: list[str] = request.getfixturevalue("large_model") if is_large else []
    return settings


@pytest.fixture(scope="session")
def config_of(small_config: Config, settings_of_size: list[str]) -> Callable[[str], Config]:
    """The config of a family that bugs are planted into: no bug in it."""
    return lambda family: override_config(small_config, [*settings_of(family), *settings_of_size])


@pytest.fixture(scope="session")
def bundle_of(config_of: Callable[[str], Config]) -> Callable[[str], Bundle]:
    """Its training build, loaded once."""
    return cache(lambda family: load(config_of(family), for_inference=False))


@pytest.fixture
def bundle_with(bundle_of: Callable[[str], Bundle]) -> Iterator[Callable[[str, tuple[str, ...]], Bundle]]:
    """The build of a family under changed settings; afterwards every parameter is trainable again."""
    changed: list[Bundle] = []

    def change(family: str, settings: tuple[str, ...]) -> Bundle:
        sound = bundle_of(family)
        sound.detector.requires_grad_(True)
        changed.append(sound)
        return replace(sound, config=override_config(sound.config, settings), manifest=None)

    yield change
    for sound in changed:
        sound.detector.requires_grad_(True)
