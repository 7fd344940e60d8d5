"""What is written for people is true: names exist, links lead somewhere, the site builds."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qwendet.checks.ids import all_ids
from qwendet.config.old_keys import REMOVED, RENAMED
from qwendet.config.problems import known_keys
from qwendet.config.reference import render_reference
from qwendet.config.schema import Config
from tests.conftest import REPO_ROOT

PAGES = sorted((REPO_ROOT / "docs").glob("*.md"))
DOCUMENTS = [*PAGES, *(REPO_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
SECTIONS = "|".join(Config.model_fields)
FAMILIES = ("config", "consistency", "loss")
by_name = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def read(repo_root: Path, name: str) -> str:
    return (repo_root / "docs" / name).read_text(encoding="utf-8")


def named(text: str) -> list[str]:
    """Dotted names in backticks: keys, perhaps with a value, and ids of checks, perhaps with a star."""
    return re.findall(rf"`((?:{SECTIONS}|config|consistency)\.[a-z_.0-9*]+)(?:: [^`]*|=[^`]*)?`", text)


def test_configuration_reference__is_fresh(repo_root: Path) -> None:
    written = read(repo_root, "configuration.md")
    assert written == render_reference(), "run: python -m qwendet.config.reference > docs/configuration.md"


@by_name
def test_links__lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@by_name
def test_names_of_keys_and_checks__exist(path: Path) -> None:
    known = {*known_keys(), *all_ids(), "config.data.files", "config.data.annotations"}
    if path.name == "CHANGELOG.md":
        removed = path.read_text(encoding="utf-8").partition("### Removed")[2].partition("###")[0]
        known |= {*named(removed)} | {f"data.{key}" for key in REMOVED}
    unknown = {
        name
        for name in named(path.read_text(encoding="utf-8"))
        if name not in known
        and not (name.endswith(".*") and any(other.startswith(name[:-1]) for other in known))
        and not name.endswith((".py", ".md", ".json", ".jsonl", ".txt", ".yaml"))
    }
    assert unknown == set()


def test_preflight__explains_every_check(repo_root: Path) -> None:
    rows = re.findall(
        r"^\| `((?:config|loss|consistency|served)\.[\w.]+)` \|(.*)\|$",
        read(repo_root, "preflight.md"),
        re.MULTILINE,
    )
    assert sorted(id for id, _ in rows) == sorted({*all_ids(), "config.data.files"}), "each in one row"
    for id, row in rows:  # what it proves, the bug behind it, how to fix it, what can make it fail
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)]
        assert len(cells) == 4, id
        assert all(cells), id


def test_moving__tells_every_old_key(repo_root: Path) -> None:
    text = read(repo_root, "moving.md")
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|$", text, re.MULTILINE))
    assert rows == RENAMED
    for key, advice in REMOVED.items():
        assert re.search(rf"^\|[^|]*`{key}`[^|]*\| {re.escape(advice)} \|$", text, re.MULTILINE), key


def test_map__names_every_module(repo_root: Path) -> None:
    text = (repo_root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = [path.name for path in (repo_root / "qwendet").glob("*.py") if not path.name.startswith("__")]
    helpers = {"boxes.py", "errors.py", "files.py", "progress.py", "check_formats.py", "config_reference.py"}
    assert [name for name in modules if name not in text and name not in helpers] == []


def test_benchmarks__say_how_to_run_them(repo_root: Path) -> None:
    for path in (repo_root / "benchmarks").glob("[a-z]*.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        shared = (
            "report",
            "random_model",
            "narrow_model",
            "plain_training",
            "probes",
            "drafts",
            "worlds",
        )
        assert path.stem in shared or f"python -m benchmarks.{path.stem}" in text, path.name


# The site


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def test_site__is_built_strictly_and_fetches_nothing(repo_root: Path, tmp_path: Path) -> None:
    done = build(repo_root, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        html = (tmp_path / "site" / f"{page.stem}.html").read_text(encoding="utf-8")
        assert (
            re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>", html) == []
        )
    architecture = (tmp_path / "site" / "architecture.html").read_text(encoding="utf-8")
    assert 'src="dataflow.svg"' in architecture
    assert 'href="source/qwendet/loader.py.txt"' in architecture
    copied = (tmp_path / "site" / "source" / "qwendet" / "loader.py.txt").read_bytes()
    assert copied == (repo_root / "qwendet" / "loader.py").read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("head.md", "# Head\n[gone](gone.md)\n", "'gone.md'"),
        ("head.md", "# Head\n[gone](../qwendet/gone.py)\n", "source/qwendet/gone.py.txt"),
        ("head.md", "# Head\n[gone](losses.md#gone)\n", "#gone"),
        ("lost.md", "# Lost\n", "lost.md"),  # no page of the navigation
    ],
)
def test_site__what_leads_nowhere_ends_the_build(
    repo_root: Path, tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    (tmp_path / "mkdocs.yml").write_text((repo_root / "mkdocs.yml").read_text(encoding="utf-8"))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "_hooks.py").write_text(read(repo_root, "_hooks.py"), encoding="utf-8")
    for page in PAGES:
        (docs / page.name).write_text(f"# {page.stem}\n", encoding="utf-8")
    (docs / name).write_text(text, encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert complaint in done.stdout + done.stderr


def test_site__holds_every_page_once(repo_root: Path) -> None:
    settings = yaml.safe_load((repo_root / "mkdocs.yml").read_text(encoding="utf-8"))
    entries = [value for entry in settings["nav"] for value in entry.values()]
    parts = [part if isinstance(part, list) else [{"": part}] for part in entries]
    pages = [page for part in parts for item in part for page in item.values()]
    assert sorted(pages) == [path.name for path in PAGES]
