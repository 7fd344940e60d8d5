"""The README's commands run as they stand, on real photographs, with the tiny model and few steps."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.commands import Qwendet

STEPS = ["--set", "train.max_steps=2", "--set", "train.batch_size=2"]


def commands(repo_root: Path) -> list[list[str]]:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    block = next(
        block for block in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) if "qwendet init" in block
    )
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [line for line in lines if line[:1] == ["qwendet"]]


@pytest.fixture(autouse=True)
def wide_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def test_walk__from_init_to_eval(repo_root: Path, shared: Path, tmp_path: Path, qwendet: Qwendet) -> None:
    walk = commands(repo_root)
    assert [line[1] for line in walk] == ["init", "validate-config", "validate", "train", "infer", "eval"]
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "voc").symlink_to(shared / "data" / "bccd" / "BCCD")
    photos = sorted((shared / "data" / "bccd" / "BCCD" / "JPEGImages").glob("*.jpg"))[:2]
    (tmp_path / "photos").mkdir()
    for photo in photos:
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes())
    extra = {
        "init": ["--model", "tiny"],
        "validate": ["--no-overfit"],
        "train": [*STEPS, "--set", "train.evaluate=false"],
    }
    for line in walk:
        done = qwendet(*line[1:], *extra.get(line[1], []))
        assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["image"] for row in rows] == [photo.name for photo in photos]
    assert all(row["width"] == 640 and row["height"] == 480 for row in rows)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert (tmp_path / "report" / "index.html").is_file()


def shown(repo_root: Path) -> list[tuple[list[str], list[str]]]:
    """Each command that the README shows with what it prints, and those lines."""
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    text = "\n".join(re.findall(r"```text\n(.*?)```", readme, re.DOTALL))
    parts = [part.splitlines() for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    return [(shlex.split(first), [line for line in rest if line and line != "…"]) for first, *rest in parts]


def test_output__is_what_the_commands_print(repo_root: Path, qwendet: Qwendet) -> None:
    """Every line, in its order; of a short training those without figures."""
    seen = []
    for words, lines in shown(repo_root):
        is_mistake, is_quick = "train.max_step=100" in words, words[1] in ("init", "validate-config")
        done = qwendet(*words[1:], *(STEPS if words[1] == "train" and not is_mistake else []))
        assert done.code == (2 if is_mistake else 0), done.err
        printed = iter([line.rstrip() for line in (done.out + done.err).splitlines()])
        if not (is_quick or is_mistake):
            lines = [line for line in lines if not line.startswith(("  ", "64 images"))]
            printed = iter(sorted(printed))
            lines.sort()
        missing = [line for line in lines if line not in printed]
        assert missing == [], done.out + done.err
        seen.append(words[1])
    assert seen == ["init", "validate-config", "train", "eval", "infer", "train"]


def test_makefile_targets__of_the_readme_exist(repo_root: Path) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    makefile = (repo_root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test", "check"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
