"""A saved checkpoint to read, a copy of it to break, and the tools to break it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.demo.tiny import write_untrained
from qwendet.files import atomic_folder, sha256_of_file
from qwendet.loader import Bundle, load
from qwendet.loading.checkpoint import save_checkpoint

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="session")
def make_config() -> MakeConfig:
    """Build a config of a small head on the tiny model; arguments are sections."""

    def make(**sections: dict[str, Any]) -> Config:
        values: dict[str, dict[str, Any]] = {
            "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
            "data": {"labels": ["orange star", "blue square"], "request": "Find {labels}."},
            "detection": {"hidden_size": 64, "num_layers": 2, "num_heads": 4},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        return build_config(values, "test")

    return make


def save(bundle: Bundle, folder: Path) -> Path:
    with atomic_folder(folder) as staging:
        save_checkpoint(
            staging,
            bundle.detector,
            bundle.processor,
            bundle.config,
            step=7,
        )
    return folder


@pytest.fixture(scope="session")
def save_bundle() -> Callable[[Bundle, Path], Path]:
    """Write a bundle as a checkpoint."""
    return save


@pytest.fixture(scope="session")
def plain_folder() -> Path:
    """A plain Hugging Face directory without a manifest; read only."""
    return write_untrained()


@pytest.fixture
def plain_copy(plain_folder: Path, tmp_path: Path) -> Path:
    """A plain Hugging Face directory to break."""
    return Path(shutil.copytree(plain_folder, tmp_path / "plain"))


@pytest.fixture(scope="session")
def bundle(make_config: MakeConfig) -> Bundle:
    """A model with a head, every weight drawn anew so that no two look alike; read only."""
    built = load(make_config(), for_inference=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.detector.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return built


@pytest.fixture(scope="session")
def saved(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's checkpoint; read only."""
    return save(bundle, tmp_path_factory.mktemp("checkpoint") / "final")


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to break."""
    return Path(shutil.copytree(saved, tmp_path / "final"))


@pytest.fixture(scope="session")
def edit_manifest() -> Callable[[Path, Callable[[dict[str, Any]], Any]], None]:
    """Change a checkpoint's manifest in place."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        path = folder / "qwendet.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        change(record)
        path.write_text(json.dumps(record), encoding="utf-8")

    return edit


@pytest.fixture(scope="session")
def edit_weights(
    edit_manifest: Callable[[Path, Callable[[dict[str, Any]], Any]], None],
) -> Callable[[Path, Callable[[dict[str, Tensor]], Any]], None]:
    """Change the tensors of a weight file, and its hash in the checkpoint's manifest if there is one."""

    def edit(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        for folder in path.parents[:2]:
            if (folder / "qwendet.json").is_file():
                own = {path.relative_to(folder).as_posix(): sha256_of_file(path)}
                edit_manifest(folder, lambda record, own=own: record["files"].update(own))

    return edit
