"""Every bug of ``bugs_loss_*`` is found by the check that it is for, in its words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwendet.checks.ids import LOSS
from qwendet.checks.preflight import run_loss_checks
from qwendet.checks.subject import temporary_subject
from qwendet.errors import Result
from qwendet.loader import Bundle
from tests.invariants.suite import INVARIANTS, broken
from tests.planted.bug import Bug
from tests.planted.bugs_loss_batch import BATCH_BUGS
from tests.planted.bugs_loss_families import LOSS_FAMILY_BUGS
from tests.planted.bugs_loss_model import MODEL_BUGS
from tests.planted.bugs_loss_terms import TERM_BUGS
from tests.planted.bugs_loss_trainer import TRAINER_BUGS
from tests.planted.by_family import FIRST, in_families

pytestmark = pytest.mark.slow

BUGS = (*TERM_BUGS, *MODEL_BUGS, *BATCH_BUGS, *TRAINER_BUGS, *LOSS_FAMILY_BUGS)

MakeBundle = Callable[[str, tuple[str, ...]], Bundle]


def results_of(bundle: Bundle, only: set[str]) -> list[Result]:
    built = bundle if bundle.config.model.lora is None else None  # else it has no adapter yet
    with temporary_subject(bundle.config, built) as subject:
        return broken(subject, only) if only & INVARIANTS.keys() else run_loss_checks(subject, only=only)[0]


@pytest.mark.parametrize(("bug", "family"), in_families(BUGS))
def test_planted_bug__is_found(
    bug: Bug[pytest.MonkeyPatch], family: str, bundle_with: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_with(family, bug.settings)
    with monkeypatch.context() as planting:
        bug.plant(planting)
        found = results_of(bundle, {bug.check})
    failed = [result for result in found if result.status == "fail"]
    assert {result.id for result in failed} == {bug.check}, found
    message = "\n".join(f"{result.what} {result.where}" for result in failed)
    assert "could not run" not in message
    for words in bug.words:
        assert words in message
    assert all(result.fix for result in failed)


@pytest.mark.parametrize("settings", sorted({bug.settings for bug in BUGS if not bug.families}))
def test_sound_project__passes(settings: tuple[str, ...], bundle_with: MakeBundle) -> None:
    found = results_of(bundle_with(FIRST, settings), set())
    assert [result for result in found if result.status != "pass"] == []
    assert [result.id for result in found] == list(LOSS)


def test_every_check__has_a_bug_that_it_finds() -> None:
    assert set(LOSS) - {bug.check for bug in BUGS} == set()
