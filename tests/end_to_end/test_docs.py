"""The quick start of the documentation and its Python API run as they stand, with few steps and samples."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.commands import Qwendet, run_command

STEPS = ["--set", "train.max_steps=2", "--set", "train.batch_size=2"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project `shapes`, of a few samples."""
    folder = tmp_path_factory.mktemp("docs")
    assert run_command("init", folder / "shapes", "--tiny").code == 0
    for name, count in (("train.jsonl", 16), ("val.jsonl", 4)):
        path = folder / "shapes" / "data" / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:count]), encoding="utf-8")
    return folder


def test_quick_start__from_init_to_eval(
    repo_root: Path, project: Path, tmp_path: Path, qwendet: Qwendet, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (repo_root / "docs" / "index.md").read_text(encoding="utf-8")
    (block,) = (part for part in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "--tiny" in part)
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert [line[0] for line in lines] == ["init", "validate", "train", "infer", "eval"]
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for line in lines[2:]:  # the README's walk runs `validate`
        done = qwendet(*line, *(STEPS if line[0] == "train" else []))
        assert done.code == 0, done.err
    assert len((tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
    assert (tmp_path / "report" / "index.html").is_file()


def test_python_api__every_example_runs(
    repo_root: Path,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (repo_root / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 9
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    script = "\n".join(blocks).replace("train.max_steps=100", "train.max_steps=2")
    exec(script, {"__name__": "__main__"})  # noqa: S102
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("2 ('cyan crescent', 'cyan cross', "), "as the override and init have it"
    assert "unknown key did you mean train.max_steps?" in "\n".join(printed)
    assert "head/AP50" in "\n".join(printed)
    assert printed[-2].endswith(" 1"), "one whole box of the answer, one lost"
    assert printed[-1] == "[]", "no check of config and data fails"
