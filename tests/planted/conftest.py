"""A sound project that bugs are planted into: the embedded model, 24 scenes, demonstrations, a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwendet.checks.result import Result
from qwendet.config import Config
from qwendet.config_file import load_config, override_config
from qwendet.loader import Bundle, load

RunChecks = Callable[[Bundle, set[str]], list[Result]]


@pytest.fixture(scope="session")
def sound_config(repo_root: Path) -> Config:
    """The config of examples/tiny.yaml: no bug in it."""
    return load_config(repo_root / "examples" / "tiny.yaml", ["model.device=cpu", "train.batch_size=4"])


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
