"""Demonstrations at inference: from the pool as in training, never the image that is asked about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwendet.config.schema import Config, DataConfig
from qwendet.data import teachers
from qwendet.data.samples import Sample, SampleFile
from qwendet.errors import DataError
from qwendet.inference import inputs
from qwendet.inference.inputs import collect_samples, with_teachers


@pytest.fixture
def pool(scenes_file: Path, tmp_path: Path) -> Path:
    """Three images of scenes, the second one asked about by a copy and a link, too."""
    folder = shutil.copytree(scenes_file.parent, tmp_path / "scenes")
    lines = scenes_file.read_text(encoding="utf-8").splitlines(keepends=True)[:3]
    names = [json.loads(line)["images"][0] for line in lines]
    shutil.copyfile(folder / names[1], folder / "copy.png")
    (folder / "link.png").symlink_to(names[1])
    (folder / "pool.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "pool.jsonl"


def config_of(pool: Path) -> Config:
    return Config(data=DataConfig(train=str(pool), teachers=str(pool)))


def shown(samples: list[Sample]) -> list[set[str]]:
    return [{turn.image for turn in sample.teachers} for sample in samples]


def test_with_teachers__no_image_is_shown_as_its_own_demonstration(pool: Path) -> None:
    """Two are wanted of three, so that without a filter each image would be shown to itself or a copy."""
    names = [sample.student.image for sample in SampleFile(pool)]
    asked = collect_samples([pool, pool.with_name("copy.png"), pool.with_name("link.png")])
    found = shown(with_teachers(asked, config_of(pool), 2))
    others = [set(names) - {name} for name in names]
    assert found == [*others, others[1], others[1]]


def test_with_teachers__of_other_images_are_those_of_before(pool: Path, scenes_file: Path) -> None:
    """An image that is not in the pool is shown the first ones that were drawn."""
    asked = list(SampleFile(scenes_file))[5:8]
    for count in (1, 2):
        found = shown(with_teachers(asked, config_of(pool), count))
        assert found == [found[0]] * 3
        assert len(found[0]) == count


def test_with_teachers__planted_without_the_filter_an_image_is_shown_to_itself(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "is_same_image", lambda one, other: False)
    asked = collect_samples([pool])
    found = shown(with_teachers(asked, config_of(pool), 2))
    assert any(sample.student.image in images for sample, images in zip(asked, found, strict=True))


@pytest.mark.parametrize("name", ["", "copy.png", "link.png"], ids=["itself", "copy", "link"])
def test_collect_samples__a_demonstration_of_the_very_image_is_refused(
    name: str, pool: Path, refusal: Callable[..., DataError]
) -> None:
    first, second, _ = (json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines())
    teacher = second | ({"images": [name]} if name else {})
    file = pool.with_name("asked.jsonl")
    file.write_text(json.dumps({"teachers": [first, teacher], "student": second}), encoding="utf-8")
    error = refusal(collect_samples, [file])
    (problem,) = error.problems
    image = teacher["images"][0]
    assert problem.what == f"a demonstration shows {image!r}, the very image that is asked about"
    assert problem.where == f"{file}:1"


def test_collect_samples__planted_without_the_comparison_it_passes(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "is_same_image", lambda one, other: False)
    record = json.loads(pool.read_text(encoding="utf-8").splitlines()[0])
    file = pool.with_name("asked.jsonl")
    file.write_text(json.dumps({"teachers": [record], "student": record}), encoding="utf-8")
    assert len(collect_samples([file])) == 1
