"""Demonstrations at inference: from the pool as in training, never the image that is asked about."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

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


def listed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text)))


def test_standard_input__names_images_as_they_are_written(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pool.parent)
    absolute = str(pool.with_name("copy.png"))
    for text in (f"copy.png\r\n\n./link.png\n{absolute}", f"copy.png\0./link.png\0{absolute}\0"):
        listed(monkeypatch, text.encode())
        asked = collect_samples([Path("-")])
        assert [sample.student.image for sample in asked] == ["copy.png", "./link.png", absolute]
        assert asked[1].where == "standard input:2"
    monkeypatch.chdir(pool.parent / "images" if (pool.parent / "images").is_dir() else "/")
    listed(monkeypatch, os.path.relpath(absolute).encode())
    (sample,) = collect_samples([Path("-")])
    assert (sample.student.root / sample.student.image).samefile(absolute)


@pytest.mark.parametrize(
    ("text", "what"),
    [(b"\n\n", "standard input names no image"), (b"absent.png\n", "the image 'absent.png' is absent")],
)
def test_standard_input__of_no_images_is_refused(
    text: bytes, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusal: Callable[..., DataError]
) -> None:
    monkeypatch.chdir(tmp_path)
    listed(monkeypatch, text)
    assert what in refusal(collect_samples, [Path("-")]).problems[0].what


def test_folder__thumbnails_and_copies_are_none_of_its_images(pool: Path) -> None:
    folder = pool.parent / "photos"
    for name in ("a.png", "b/c.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "b/@eaDir/c.jpg",
                 ".ipynb_checkpoints/a-checkpoint.png", "b/.ipynb_checkpoints/c-checkpoint.png"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pool.with_name("copy.png"), folder / name)
    assert [sample.student.image for sample in collect_samples([folder])] == ["a.png", "b/c.png"]


def config_of(pool: Path) -> Config:
    return Config(data=DataConfig(train=str(pool), teachers=str(pool)))


def shown(samples: Sequence[Sample]) -> list[set[str]]:
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
