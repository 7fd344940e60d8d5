"""Fixtures and options that every test may use."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.commands import Qwendet, run_command

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is not a failure; the rest of hypothesis' own profile (in CI: derandomised) stays.
settings.register_profile("qwendet", parent=settings(), deadline=None)
settings.load_profile("qwendet")

REPO_ROOT = Path(__file__).resolve().parents[1]
GOLDEN_FOLDER = REPO_ROOT / "tests" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden with what was found")
    parser.addoption(
        "--large", action="store_true", help="plant the bugs into a large bfloat16 model's project"
    )
    parser.addoption(
        "--every-family", action="store_true", help="plant each bug into every family that can have it"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_collection_finish() -> None:
    """Leave what imports made out of all later garbage collections: each run of the Trainer makes one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout: where README.md, examples/ and the Makefile are."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared(repo_root: Path) -> Path:
    """The folder with real data, `$QWENDET_SHARED` or `../shared`; skips where there is none."""
    folder = Path(os.environ.get("QWENDET_SHARED") or repo_root.parent / "shared").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set QWENDET_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def small_model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a narrow random model of a published folder, with a vocabulary of 1,300; once each."""
    from benchmarks.narrow_model import write_narrow_model

    @cache
    def write(name: str) -> Path:
        source = shared / "qwen_processor" / name
        return write_narrow_model(source, tmp_path_factory.mktemp("small") / name, merges=1000)

    return write


@pytest.fixture
def qwendet() -> Qwendet:
    """Run a command in this process."""
    return run_command


@pytest.fixture
def float64_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float64 model calculates in float64 throughout.

    transformers lowers norms, rotary angles, eager attention and logits to float32, so that other shapes or
    another processor may differ by 1e-7. In float64 it is less than 1e-10: some ten products of at most 1,000
    summands of size 10, at an epsilon of 2e-16.
    """
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    lower, convert, softmax = Tensor.float, Tensor.to, F.softmax

    def is_theirs(tensor: Tensor) -> bool:
        """Whether a float64 tensor is being lowered by transformers' own code, two calls up."""
        name = sys._getframe(2).f_globals["__name__"]
        return tensor.dtype == torch.float64 and name.startswith("transformers.")

    def floated(tensor: Tensor) -> Tensor:
        return tensor if is_theirs(tensor) else lower(tensor)

    def converted(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_lowered = any(value is torch.float32 for value in (*args, *kwargs.values()))
        return tensor if is_lowered and is_theirs(tensor) else convert(tensor, *args, **kwargs)

    def softmax_kept(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return softmax(tensor, *args, **kwargs | ({"dtype": tensor.dtype} if is_theirs(tensor) else {}))

    monkeypatch.setattr(Tensor, "float", floated)
    monkeypatch.setattr(Tensor, "to", converted)
    monkeypatch.setattr(F, "softmax", softmax_kept)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file `tests/golden/<name>`; `--update-golden` rewrites the file instead."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN_FOLDER / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        assert path.is_file(), f"no {path}: look at the text, then run pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"differs from {path}: --update-golden if meant"

    return compare
