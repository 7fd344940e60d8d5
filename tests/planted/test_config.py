"""Every bug of :mod:`tests.planted.bugs_config` is found by its check, in its words; sound data passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qwendet.checks.config import scan
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import known_ids, run_config_checks
from qwendet.config.load import load_config
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.demo.shapes import DEMO, write_dataset
from tests.planted.bug import Bug
from tests.planted.bugs_config import BUGS
from tests.planted.by_family import families, in_families
from tests.planted.planting import Project
from tests.planted.sound import SOUND


@pytest.mark.parametrize(("bug", "family"), in_families(BUGS))
def test_planted_bug__is_found(bug: Bug[Project], family: str, tmp_path: Path, is_large: bool) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    project = Project.sound(folder)
    if is_large:
        project.set("model.dtype", "bfloat16")
    bug.plant(project)
    project.of(family)
    found = project.failures(**dict(bug.how))
    said = [words for id, words in found if id == bug.check]
    assert said, found
    assert any(all(part in words for part in bug.words) for words in said), said
    assert not any("could not run" in words for _, words in found), found
    assert all(not words.endswith("| ") for words in said if " more" not in words), said  # each has a fix


def test_every_check__has_a_bug_that_it_finds() -> None:
    names = ("gpu", "flash_attention", "report_to", "launcher")
    of_the_machine = {f"config.environment.{name}" for name in names}
    assert set(known_ids()) - {bug.check for bug in BUGS} == of_the_machine  # these in tests/unit
    assert len(BUGS) > 80
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def _config_of(folder: Path) -> Path:
    """A config that names the sample files of a folder."""
    names = {"train": "train.jsonl" if (folder / "train.jsonl").exists() else "all.jsonl"}
    if (folder / "val.jsonl").exists():
        names["val"] = "val.jsonl"
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"data": names}), encoding="utf-8")
    return path


@pytest.mark.parametrize("family", families(every=False))
@pytest.mark.parametrize("name", SOUND)
def test_sound_project__passes(name: str, family: str, tmp_path: Path, is_large: bool) -> None:
    project = Project.sound(tmp_path)
    SOUND[name](project)
    project.of(family)
    if is_large:
        project.set("model.dtype", "bfloat16")
    assert project.failures(images="full", tokens=True) == []


def test_generated_shapes__pass_in_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FEW_SAMPLES", 100)
    for split, count, seed in (("train", 270, 1), ("val", 30, 2)):
        write_dataset(DEMO, tmp_path / f"{split}.jsonl", count, seed)
    config = load_config(_config_of(tmp_path))
    results, tables = run_config_checks(config, Thoroughness(workers=2))
    assert [result for result in results if result.status == "fail"] == []
    assert [(row[0], row[1], row[2]) for row in tables[0].rows] == [("val", 30, 30), ("train", 270, 270)]
    alone, same = run_config_checks(config)
    assert [(r.id, r.status, r.what) for r in alone] == [(r.id, r.status, r.what) for r in results]
    assert same == tables


@pytest.mark.parametrize(
    ("source", "splits"), [("bccd/BCCD", {"train": 205, "val": 87}), ("nuts/data", {"all": 18})]
)
def test_real_data__passes(shared: Path, tmp_path: Path, source: str, splits: dict[str, int]) -> None:
    folder = shared / "data" / source
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    convert_dataset(folder, tmp_path / "out", Conversion())
    config = load_config(_config_of(tmp_path / "out"))
    results, tables = run_config_checks(config, Thoroughness(images="full"))
    assert [result for result in results if result.status == "fail"] == []
    assert sorted(row[1] for row in tables[0].rows) == sorted(splits.values())
