"""Every bug of ``bugs_consistency`` and ``bugs_checkpoint`` is found by the check it is for, in its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwendet.checks.consistency import run_consistency_checks
from qwendet.checks.result import Result
from qwendet.checks.subject import temporary_subject
from qwendet.config import Config
from qwendet.config_file import load_config
from qwendet.progress import silent
from tests.planted.bug import Bug
from tests.planted.bugs_consistency import BUGS


@pytest.fixture(scope="module")
def project(repo_root: Path) -> Config:
    return load_config(repo_root / "examples" / "tiny.yaml", ["model.device=cpu", "train.batch_size=4"])


def require_found(found: list[Result], check: str, words: tuple[str, ...]) -> None:
    failed = [result for result in found if result.status == "fail" and result.id == check]
    message = "\n".join(f"{result.what} {result.where}" for result in failed)
    assert failed, found
    assert "could not run" not in message
    for word in words:
        assert word in message
    assert all(result.fix for result in failed)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_planted_bug__is_found(bug: Bug, project: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planting, temporary_subject(project) as subject:
        bug.plant(planting)
        found, _ = run_consistency_checks(subject, silent, only=[bug.check])
    require_found(found, bug.check, bug.words)
