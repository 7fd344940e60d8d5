"""Demonstrations: every label, every density, nothing that validation has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.data.choose_pool import PoolReport, choose_pool
from qwendet.data.samples import SampleFile
from qwendet.errors import ConfigError, DataError


def write(folder: Path, *contents: list[str], name: str = "train", crowd: bool = False) -> Path:
    """A sample file of one image for each list of labels."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    lines = []
    for number, labels in enumerate(contents):
        image = f"{name}-{number}.png"
        Image.new("RGB", (40, 30), (number, len(name), 0)).save(folder / image)
        objects: list[dict[str, Any]] = [
            {"bbox_2d": [1, 2, 20, 25], "desc": label, "crowd": crowd} for label in labels
        ]
        lines.append(json.dumps({"images": [image], "objects": objects}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


def choose(
    train: Path, count: int, *held_out: Path, seed: int = 0, out: Path | None = None, root: Path | None = None
) -> PoolReport:
    target = out or train.with_name("teachers.jsonl")
    return choose_pool(train, target, count, held_out=held_out, root=root, seed=seed)


def images(report: PoolReport) -> list[str]:
    return [sample.student.image for sample in SampleFile(report.file)]


def test_pool__shows_every_label_rarest_first(tmp_path: Path) -> None:
    train = write(tmp_path, *[["a"]] * 20, ["b"], *[["c"]] * 5)
    report = choose(train, 3)
    assert report.shown == {"a": 1, "b": 1, "c": 1}
    assert report.available == {"a": 20, "b": 1, "c": 5}
    assert images(report)[0] == "train-20.png"


def test_pool__spreads_over_densities(tmp_path: Path) -> None:
    train = write(tmp_path, *[["a"] * number for number in (1, 1, 1, 5, 5, 5, 20, 20, 20)])
    report = choose(train, 6)
    assert report.images == {"sparse": 2, "medium": 2, "dense": 2}


def test_pool__never_from_validation__nor_a_copy(tmp_path: Path) -> None:
    train = write(tmp_path, *[["a"]] * 4)
    val = write(tmp_path, ["a"], name="val")
    shutil.copy(tmp_path / "train-1.png", tmp_path / "val-0.png")
    report = choose(train, 4, val)
    assert report.held_out == 1
    assert sorted(images(report)) == ["train-0.png", "train-2.png", "train-3.png"]


def test_pool__no_negatives_no_crowds_no_copies(tmp_path: Path) -> None:
    train = write(tmp_path, [], ["a"], ["a"])
    shutil.copy(tmp_path / "train-1.png", tmp_path / "train-2.png")
    assert len(images(choose(train, 3))) == 1
    crowd = write(tmp_path / "crowd", ["a"], crowd=True)
    with pytest.raises(DataError, match="there is no image to choose: each is held out, without objects, or"):
        choose(crowd, 1)


def test_pool__a_label_that_only_held_out_images_show(tmp_path: Path) -> None:
    train = write(tmp_path, ["a"], ["b"])
    shutil.copy(tmp_path / "train-1.png", tmp_path / "v.png")
    val = tmp_path / "val.jsonl"
    val.write_text('{"images": ["v.png"], "objects": []}\n')
    assert choose(train, 2, val).shown == {"a": 1, "b": 0}


def test_pool__seed(tmp_path: Path) -> None:
    train = write(tmp_path, *[["a"]] * 30)
    chosen = [
        images(choose(train, 5, seed=seed, out=tmp_path / f"{at}.jsonl")) for at, seed in enumerate((0, 0, 1))
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_pool__in_a_folder_above(tmp_path: Path) -> None:
    train = write(tmp_path / "data", ["a"])
    report = choose(train, 1, out=tmp_path / "pool.jsonl")
    assert images(report) == ["data/train-0.png"]


def test_pool__in_another_folder(tmp_path: Path) -> None:
    train = write(tmp_path / "data", ["a"])
    with pytest.raises(ConfigError, match="the pool's folder does not hold the images"):
        choose(train, 1, out=tmp_path / "other" / "pool.jsonl")
    report = choose(train, 1, out=tmp_path / "other" / "pool.jsonl", root=tmp_path / "data")
    assert images(report) == ["train-0.png"]


def test_pool__overwrites_nothing(tmp_path: Path) -> None:
    train = write(tmp_path, ["a"])
    with pytest.raises(ConfigError, match="there is a file of this name already"):
        choose(train, 1, out=train)
    assert len(SampleFile(train)) == 1


def test_pool__declares_no_size_that_the_samples_do_not(tmp_path: Path) -> None:
    report = choose(write(tmp_path, ["a"]), 1)
    record = json.loads(report.file.read_text())
    assert record == {"images": ["train-0.png"], "objects": [{"bbox_2d": [1, 2, 20, 25], "desc": "a"}]}


def test_pool__an_absent_file_is_named_before_places_are_compared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        choose(tmp_path / "nowhere.jsonl", 1, out=tmp_path / "other" / "pool.jsonl")
