"""What is written for people is true: the reference is fresh, examples load, benchmarks say what they do."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from qwendet.checks.config.suite import require_config_checks
from qwendet.checks.ids import all_ids
from qwendet.config_file import load_config
from qwendet.config_reference import render_reference
from qwendet.progress import silent


def test_configuration_reference__is_fresh(repo_root: Path) -> None:
    written = (repo_root / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == render_reference(), "run: python -m qwendet.config_reference > docs/configuration.md"


def test_examples__load_and_say_when_to_choose_them(repo_root: Path) -> None:
    examples = sorted((repo_root / "examples").glob("*.yaml"))
    assert {"tiny.yaml", "base_flat_v2.yaml", "pretrain_tiny.yaml"} <= {path.name for path in examples}
    for path in examples:
        load_config(path)
        assert "Choose it" in path.read_text(encoding="utf-8"), path.name


def test_base_flat_v2__is_the_full_size_configuration() -> None:
    config = load_config("base_flat_v2")
    assert config.model.path == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert config.model.attn_implementation == "flash_attention_2"
    assert config.model.dtype == "bfloat16"
    assert config.detection.enabled


def test_tiny_example__is_small(repo_root: Path) -> None:
    files = [path for path in (repo_root / "examples" / "tiny").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 1_000_000


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/checkpoints.md",
        "docs/command_line.md",
        "docs/data.md",
        "docs/evaluation.md",
        "docs/head.md",
        "docs/init.md",
        "docs/losses.md",
        "docs/preflight.md",
        "docs/scaling.md",
        "docs/security.md",
        "docs/serving.md",
    ],
)
def test_links__lead_somewhere(repo_root: Path, document: str) -> None:
    path = repo_root / document
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing == []


def test_preflight__names_every_check(repo_root: Path) -> None:
    written = (repo_root / "docs" / "preflight.md").read_text(encoding="utf-8")
    assert [id for id in all_ids() if f"`{id}`" not in written] == []


def test_readme__names_every_module(repo_root: Path) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    modules = [path.name for path in (repo_root / "qwendet").glob("*.py") if not path.name.startswith("__")]
    helpers = {"boxes.py", "errors.py", "files.py", "progress.py", "check_formats.py", "config_reference.py"}
    assert [name for name in modules if name not in readme and name not in helpers] == []


def test_benchmarks__say_how_to_run_them(repo_root: Path) -> None:
    for path in (repo_root / "benchmarks").glob("[a-z]*.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        is_shared = path.stem in ("report", "random_model", "plain_training", "probes")
        assert is_shared or f"python -m benchmarks.{path.stem}" in text, path.name


def test_tiny_example__can_be_used_from_beside_it(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder `tiny`, which holds its images, is not taken for the model `tiny`."""
    shutil.copytree(repo_root / "examples" / "tiny", tmp_path / "tiny")
    shutil.copy(repo_root / "examples" / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config("tiny.yaml")
    assert config.model.path == "tiny"
    require_config_checks(config, silent)
