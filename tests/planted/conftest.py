"""A sound project that bugs are planted into: the embedded model, 24 scenes, demonstrations, a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwendet.checks.result import Result
from qwendet.config.load import load_config, override_config
from qwendet.config.schema import Config
from qwendet.loader import Bundle, load
from tests.planted.large import take_for_large, write_deep_model

RunChecks = Callable[[Bundle, set[str]], list[Result]]


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
def sound_config(small_config: Config, settings_of_size: list[str]) -> Config:
    """The config that bugs are planted into: no bug in it."""
    return override_config(small_config, settings_of_size)


@pytest.fixture(scope="session")
def sound_bundle(sound_config: Config) -> Bundle:
    """Its training build, loaded once."""
    return load(sound_config, for_inference=False)


@pytest.fixture
def bundle_with(sound_bundle: Bundle) -> Iterator[Callable[[tuple[str, ...]], Bundle]]:
    """The build under changed settings; afterwards every parameter is trainable again."""

    def change(settings: tuple[str, ...]) -> Bundle:
        config = override_config(sound_bundle.config, settings)
        return Bundle(sound_bundle.detector, sound_bundle.processor, config)

    sound_bundle.detector.requires_grad_(True)
    yield change
    sound_bundle.detector.requires_grad_(True)
