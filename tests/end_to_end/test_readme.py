"""The README's commands run as they stand, on real photographs, with the tiny model and few steps."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = ["--set", "train.max_steps=2", "--set", "train.batch_size=2"]


def commands(repo_root: Path) -> list[list[str]]:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    block = next(
        block for block in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) if "qwendet init" in block
    )
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [line for line in lines if line[:1] == ["qwendet"]]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_walk__from_init_to_eval(repo_root: Path, shared: Path, tmp_path: Path) -> None:
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
        done = run([*line, *extra.get(line[1], [])], tmp_path)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["image"] for row in rows] == [photo.name for photo in photos]
    assert all(row["width"] == 640 and row["height"] == 480 for row in rows)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert (tmp_path / "report" / "index.html").is_file()


def test_makefile_targets__of_the_readme_exist(repo_root: Path) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    makefile = (repo_root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test", "check"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
