"""No check fails on a sound run, whatever it is built of."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import run_config_checks
from qwendet.checks.preflight import run_consistency_checks, run_loss_checks
from qwendet.checks.subject import temporary_subject
from qwendet.config.load import load_config
from tests.invariants.runs import serving
from tests.invariants.suite import broken
from tests.planted.by_family import FIRST
from tests.planted.planting import Project
from tests.planted.sound import OF_FAMILIES, SOUND_RUNS, sized

RUNS = {FIRST: SOUND_RUNS} | OF_FAMILIES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, runs in RUNS.items() for name in runs]
)
def test_sound_run__passes(
    family: str, name: str, tmp_path: Path, settings_of_size: list[str], is_large: bool
) -> None:
    project = Project.sound(tmp_path)
    RUNS[family][name](project)
    project.of(family)
    is_own = "path" in project.values.get("model", {})  # then in the large model's type alone
    settings = [setting for setting in settings_of_size if not (is_own and "path" in setting)]
    config = load_config(project.write(), ["model.device=cpu", *settings])
    results, _ = run_config_checks(config, Thoroughness(tokens=True))
    with temporary_subject(config) as subject:
        results += run_loss_checks(subject, with_overfit=False)[0]
        results += run_consistency_checks(subject)[0]
        results += [] if is_large else broken(subject)
    assert [result for result in results if result.status == "fail"] == []


@pytest.mark.slow
def test_prompts_of_one_length__pass(tmp_path: Path) -> None:
    """One camera and no room for a demonstration: nothing is padded, and `generate` drops the mask."""
    project = Project.sound(tmp_path)
    sized((160, 120))(project)
    project.set("data.max_tokens", 176)
    config = load_config(project.write(), ["model.device=cpu"])
    with temporary_subject(config) as subject:
        results = run_consistency_checks(subject)[0] + broken(subject)
        assert all(not sample.teachers for sample in subject.samples)
        assert "attention_mask" in serving(subject).trace.prompts[0], "put back"
        assert serving(subject).trace.prompts[1].get("attention_mask") is None
    assert [result for result in results if result.status == "fail"] == []
