"""Splitting: each part its share of every label, copies together, the same seed the same parts."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwendet.data.formats.convert import Conversion, ConversionReport
from qwendet.data.split import split_dataset, stratify
from qwendet.errors import ConfigError, DataError

SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


def write(folder: Path, *contents: list[str], colours: list[int] | None = None) -> Path:
    """``all.jsonl`` of one image for each list of labels; images differ as their colours do."""
    folder.mkdir()
    lines = []
    for number, labels in enumerate(contents):
        colour = colours[number] if colours else number
        Image.new("RGB", (40, 30), (colour, 0, 0)).save(folder / f"{number}.png")
        objects = [{"bbox_2d": [1, 2, 20, 25], "desc": label} for label in labels]
        lines.append(json.dumps({"images": [f"{number}.png"], "objects": objects}) + "\n")
    (folder / "all.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def split(src: Path, dst: Path, seed: int = 0, **fractions: float) -> ConversionReport:
    return split_dataset(src, dst, fractions or {"val": 0.2}, seed, Conversion())


def members(folder: Path) -> dict[str, set[str]]:
    found = {}
    for file in folder.glob("*.jsonl"):
        records: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.stem] = {Path(record["images"][0]).name for record in records}
    return found


def test_stratify__every_label_its_share() -> None:
    """A rare label, a common one and negatives; at random a tenth of 30 is 0 to 7, here it is 3."""
    draw = random.Random(1)
    labels = [{"rare"} for _ in range(30)] + [{"common"} for _ in range(400)] + [{""} for _ in range(100)]
    labels += [{"rare", "common"} for _ in range(20)] + [{"common", "other"} for _ in range(50)]
    draw.shuffle(labels)
    parts = stratify(labels, [1] * 600, SHARES, seed=3)
    assert {part: parts.count(part) for part in SHARES} == {"train": 422, "val": 119, "test": 59}
    for label, count in (("rare", 50), ("common", 470), ("", 100), ("other", 50)):
        found = Counter(part for part, own in zip(parts, labels, strict=True) if label in own)
        for part, share in SHARES.items():
            assert abs(found[part] - share * count) <= 1, (label, part)


@given(
    labels=st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=1, max_size=40),
    seed=st.integers(0, 5),
)
def test_stratify__deals_out_everything_and_is_repeatable(labels: list[set[str]], seed: int) -> None:
    weights = [1 + len(own) % 2 for own in labels]
    parts = stratify(labels, weights, SHARES, seed)
    assert set(parts) <= set(SHARES)
    assert parts == stratify(labels, weights, SHARES, seed)
    dealt_first = min("abcd", key=lambda label: sum(label in own for own in labels) or len(labels) + 1)
    given_out = Counter[str]()
    for own, weight, part in zip(labels, weights, parts, strict=True):
        given_out[part] += weight if dealt_first in own else 0
    for (
        part,
        share,
    ) in SHARES.items():  # who wants most wants something: it gets one group of 2 too much at most
        assert -2 * 2 - 1e-9 <= given_out[part] - share * given_out.total() <= 2 + 1e-9, part


def test_split__labels_and_negatives_are_spread(tmp_path: Path) -> None:
    source = write(tmp_path / "in", *[["a"]] * 20, *[["b", "b"]] * 10, *[list[str]()] * 10)
    report = split(source, tmp_path / "out", val=0.2, test=0.1)
    assert report.images == {"train": 28, "val": 8, "test": 4}
    assert report.boxes == {
        "train": {"a": 14, "b": 14},
        "val": {"a": 4, "b": 4},
        "test": {"a": 2, "b": 2},
    }
    found = members(tmp_path / "out")
    assert sorted(set().union(*found.values())) == sorted(f"{number}.png" for number in range(40))
    assert sum(map(len, found.values())) == 40


def test_split__seed(tmp_path: Path) -> None:
    source = write(tmp_path / "in", *[["a"]] * 20)
    for name, seed in (("1", 0), ("2", 0), ("3", 1)):
        split(source, tmp_path / name, seed)
    first, same, other = (members(tmp_path / name) for name in "123")
    assert first == same
    assert first != other


def test_split__identical_images_stay_together(tmp_path: Path) -> None:
    source = write(tmp_path / "in", *[["a"]] * 20, colours=[number // 2 for number in range(20)])
    split(source, tmp_path / "out", val=0.3)
    for names in members(tmp_path / "out").values():
        numbers = {int(Path(name).stem) for name in names}
        assert all(number ^ 1 in numbers for number in numbers)


def test_split__old_splits_are_forgotten(tmp_path: Path) -> None:
    source = write(tmp_path / "in", *[["a"]] * 10)
    lines = (source / "all.jsonl").read_text().splitlines(keepends=True)
    (source / "all.jsonl").unlink()
    (source / "train.jsonl").write_text("".join(lines[:5]))
    (source / "test.jsonl").write_text("".join(lines[5:]))
    assert split(source, tmp_path / "out", val=0.2).images == {"train": 8, "val": 2}


def test_split__too_few(tmp_path: Path) -> None:
    source = write(tmp_path / "in", ["a"], ["a"])
    with pytest.raises(DataError, match=r"no image is left for test: 2 are too few for 0.01 of them"):
        split(source, tmp_path / "out", val=0.4, test=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_split__broken_images_are_told_before_parts_are_too_small(tmp_path: Path) -> None:
    src = write(tmp_path / "in", ["a"], ["a"])
    for image in src.rglob("*.png"):
        image.write_text("no image")
    with pytest.raises(DataError, match="is not an image"):
        split(src, tmp_path / "out", val=0.5)


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (1.0, 0.0, "--val: expected a fraction from 0 to 1, got 1"),
        (-0.1, 0.0, "--val: expected a fraction from 0 to 1, got -0.1"),
        (0.5, 0.5, "--val 0.5 --test 0.5: expected training to keep some images"),
        (0.0, 0.0, "--val 0 --test 0: expected training to keep some images and another split to get some"),
    ],
)
def test_split__fractions(tmp_path: Path, val: float, test: float, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        split(write(tmp_path / "in", ["a"]), tmp_path / "out", val=val, test=test)
    assert str(error.value).startswith(message)


def test_split__real_data(shared: Path, tmp_path: Path) -> None:
    """BCCD: 364 images, 372 WBC, 361 Platelets; each part has its share of images with each."""
    how = Conversion(images="reference")
    fractions = {"val": 0.2, "test": 0.1}
    report = split_dataset(shared / "data" / "bccd", tmp_path / "out", fractions, 0, how)
    assert sum(report.images.values()) == 364
    assert abs(report.images["val"] - 72.8) <= 2
    assert abs(report.images["test"] - 36.4) <= 2
    assert abs(report.boxes["val"]["Platelets"] - 72) <= 15
