"""``loss.gradients`` looks at projects that have no room for demonstrations and ask for none, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwendet.checks.preflight import run_loss_checks
from qwendet.checks.subject import temporary_subject
from qwendet.config.load import load_config
from qwendet.errors import Result
from qwendet.init.project import init_project
from tests.planted.bugs_loss_terms import in_tokens
from tests.planted.planting import Project

NO_ROOM = "data.max_tokens=200"
"""Of samples that have up to 190, as large images leave none for a second one."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``init`` writes for images of one size."""
    folder = tmp_path_factory.mktemp("project")
    data = Project.sound(folder / "data", size=(640, 480))
    data.write()
    return init_project(folder / "p", tiny=False, model="tiny", data=folder / "data").config


def gradients(config: Path, *settings: str) -> list[Result]:
    with temporary_subject(load_config(config, [NO_ROOM, *settings])) as subject:
        results, _ = run_loss_checks(subject, only=["loss.gradients"])
    return results


def test_gradients__of_a_project_without_room_for_demonstrations(config: Path) -> None:
    (result,) = gradients(config)
    assert (result.status, result.what) == (
        "pass",
        "6 terms reach the parts that they train; 221 trainable parameters have a path;"
        " teacher trains nothing: no demonstrations are configured",
    )


def test_gradients__a_term_cut_off_is_found_there(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_tokens(lambda tokens: replace(tokens, student_sum=tokens.student_sum.detach()))(monkeypatch)
    told = [result.what for result in gradients(config) if result.status == "fail"]
    assert any("student has no path to vision" in what for what in told)


def test_gradients__demonstrations_that_do_not_fit_are_no_pass(config: Path) -> None:
    (result,) = gradients(config, "data.teacher_ratio=0.001")
    assert (result.status, result.what) == (
        "skip",
        "no sample with demonstrations fits into data.max_tokens",
    )
