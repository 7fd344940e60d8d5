"""Every bug of ``bugs_consistency_*`` and ``bugs_checkpoint`` is found by its check, in its words."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from qwendet.checks.ids import CONSISTENCY
from qwendet.checks.preflight import run_consistency_checks
from qwendet.checks.subject import Subject, temporary_subject
from qwendet.config.load import override_config
from qwendet.config.schema import Config
from qwendet.errors import Result
from qwendet.files import atomic_folder
from qwendet.loading.checkpoint import save_checkpoint
from qwendet.loading.manifest import HEAD_WEIGHTS
from tests.invariants.suite import INVARIANTS, broken
from tests.planted.bug import Bug
from tests.planted.bugs_checkpoint import FILE_BUGS
from tests.planted.bugs_consistency_build import BUILD_BUGS
from tests.planted.bugs_consistency_compute import COMPUTE_BUGS
from tests.planted.bugs_consistency_head import HEAD_BUGS
from tests.planted.bugs_consistency_images import IMAGE_BUGS
from tests.planted.bugs_consistency_prompt import PROMPT_BUGS
from tests.planted.bugs_families import FAMILY_BUGS
from tests.planted.by_family import FIRST, families, in_families
from tests.planted.large import take_for_large
from tests.planted.test_loss import BUGS as LOSS_BUGS

pytestmark = pytest.mark.slow

ConfigOf = Callable[[str], Config]
Copy = Callable[[str, bool], Path]
BUGS = (*BUILD_BUGS, *PROMPT_BUGS, *IMAGE_BUGS, *COMPUTE_BUGS, *HEAD_BUGS, *FAMILY_BUGS)


def require_found(found: list[Result], check: str, words: tuple[str, ...]) -> None:
    failed = [result for result in found if result.status == "fail" and result.id == check]
    message = "\n".join(f"{result.what} {result.where}" for result in failed)
    assert failed, found
    assert "could not run" not in message
    for word in words:
        assert word in message
    assert failed[0].fix


def find(subject: Subject, check: str) -> list[Result]:
    """What a check, or a test of the project, finds."""
    if check in INVARIANTS:
        return broken(subject, [check])
    return run_consistency_checks(subject, only=[check])[0]


def plant_and_find(bug: Bug[pytest.MonkeyPatch], sound: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = override_config(sound, bug.settings)
    with monkeypatch.context() as planting, temporary_subject(config) as subject:
        bug.plant(planting)
        found = find(subject, bug.check)
    require_found(found, bug.check, bug.words)


@pytest.mark.parametrize(("bug", "family"), in_families(BUGS))
def test_planted_bug__is_found(
    bug: Bug[pytest.MonkeyPatch], family: str, config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_and_find(bug, config_of(family), monkeypatch)


OF_EACH_CHECK = {bug.check: bug for bug in BUGS if bug.check.startswith("consistency.compute.")}


@pytest.mark.parametrize("check", OF_EACH_CHECK)
def test_bug_in_a_large_model__is_found(
    check: str, small_config: Config, large_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--large`` plants all others, too: ``python -m benchmarks.planted_bugs`` counts them."""
    take_for_large(monkeypatch)
    plant_and_find(OF_EACH_CHECK[check], override_config(small_config, large_model), monkeypatch)


@pytest.fixture(scope="module")
def subject_of(config_of: ConfigOf) -> Iterator[Callable[[str], Subject]]:
    with ExitStack() as stack:
        yield cache(lambda family: stack.enter_context(temporary_subject(config_of(family))))


@pytest.fixture(scope="module")
def saved(
    subject_of: Callable[[str], Subject], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """What training saves, whole."""

    @cache
    def save(family: str) -> Path:
        bundle, folder = subject_of(family).bundle, tmp_path_factory.mktemp("saved") / "final"
        with atomic_folder(folder) as staging:
            save_checkpoint(staging, bundle.detector, bundle.processor, bundle.config, step=0)
        return folder

    return save


@pytest.fixture
def directory(saved: Callable[[str], Path], tmp_path: Path) -> Copy:
    """A copy of what training saves, with its manifest or, plain, without manifest and head."""

    def copy(family: str, plain: bool) -> Path:
        folder = Path(shutil.copytree(saved(family), tmp_path / "final"))
        if plain:
            (folder / "qwendet.json").unlink()
            (folder / HEAD_WEIGHTS).unlink()
        return folder

    return copy


@pytest.mark.parametrize(("bug", "family"), in_families(FILE_BUGS))
def test_planted_file_bug__is_found(
    bug: Bug[Path], family: str, subject_of: Callable[[str], Subject], directory: Copy
) -> None:
    folder = directory(family, bug.is_plain)
    bug.plant(folder)
    found, _ = run_consistency_checks(subject_of(family), only=[bug.check], checkpoint=folder)
    require_found(found, bug.check, bug.words)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("family", families())
def test_sound_checkpoint__passes(
    family: str, plain: bool, subject_of: Callable[[str], Subject], directory: Copy
) -> None:
    found, _ = run_consistency_checks(subject_of(family), checkpoint=directory(family, plain))
    assert [result for result in found if result.status == "fail"] == []
    skipped = {result.id: result.what for result in found if result.status == "skip"}
    expected = {"consistency.checkpoint.files", "consistency.checkpoint.settings"} if plain else set()
    assert set(skipped) == expected
    assert all(skipped.values())


def test_sound_checkpoint__with_its_training_state_passes(
    subject_of: Callable[[str], Subject], directory: Copy
) -> None:
    folder = directory(FIRST, False)
    for name in ("resume.json", "trainer_state.json", "optimizer.pt"):
        (folder / name).write_text("{}", encoding="utf-8")
    (found,), _ = run_consistency_checks(
        subject_of(FIRST), only=["consistency.checkpoint.files"], checkpoint=folder
    )
    assert (found.status, found.what) == ("pass", "8 files are those of the manifest")


def test_every_check__has_a_bug_that_it_finds() -> None:
    bugs = {bug.check for bug in (*BUGS, *FILE_BUGS, *LOSS_BUGS)}
    assert {*CONSISTENCY, *INVARIANTS} - bugs == set()


@pytest.mark.parametrize("family", [FIRST, "qwen2_vl", "qwen3_vl"])
def test_packed_samples__stay_apart(family: str, config_of: ConfigOf) -> None:
    with temporary_subject(override_config(config_of(family), ["train.packing=true"])) as packing:
        assert INVARIANTS["test.compute.packed"](packing) == []
