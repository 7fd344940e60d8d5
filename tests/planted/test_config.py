"""Every bug of :mod:`tests.planted.bugs_config` is found by its check, in its words; sound data passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwendet.checks.config import known_ids
from tests.planted.bugs_config import BUGS
from tests.planted.planting import Bug, Project


@pytest.fixture(scope="session")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "project"
    folder.mkdir()
    Project.sound(folder)
    return folder


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_planted_bug__is_found(bug: Bug, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    project = Project.sound(folder)
    bug.plant(project)
    found = project.failures(**dict(bug.how))
    said = [words for id, words in found if id == bug.check_id]
    assert said, found
    assert any(bug.says in words for words in said), said
    assert not any("could not run" in words for _, words in found), found
    assert all(not words.endswith("| ") for words in said if " more" not in words), said  # each has a mend


def test_every_check__has_a_bug_that_it_finds() -> None:
    without = {
        "config.environment.gpu",
        "config.environment.flash_attention",
        "config.data.train",
        "config.labels.none",
    }
    assert (
        set(known_ids()) - {bug.check_id for bug in BUGS} == without
    )  # these: tests/unit/test_checks_config.py
    assert len(BUGS) > 80
    assert len({bug.name for bug in BUGS}) == len(BUGS)
