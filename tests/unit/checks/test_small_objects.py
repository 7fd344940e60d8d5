"""``config.images.small_objects``: the values that it names fix what it found."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from qwendet.checks.config.suite import run_config_checks
from qwendet.config.load import load_config
from qwendet.data.tile import Tiling, read_tiles, tile_dataset
from qwendet.errors import Result
from tests.unit.data.test_tile import Objects, write

ID = "config.images.small_objects"


def project(folder: Path, side: int, size: tuple[int, int]) -> Path:
    """A config, with objects of one size in training and validation images."""
    grid: Objects = [(x, y, x + side, y + side) for x in range(50, 500, 150) for y in range(20, 250, 110)]
    write(folder / "data" / "train.jsonl", {"a.png": grid, "b.png": grid}, size)
    write(folder / "data" / "val.jsonl", {"c.png": grid}, size)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"data": {"train": "data/train.jsonl", "val": "data/val.jsonl"}}))
    return config


def results(config: Path, *overrides: str) -> list[Result]:
    found, _ = run_config_checks(load_config(config, overrides))
    return [result for result in found if result.id == ID]


@pytest.mark.parametrize(
    ("side", "size", "seen"), [(40, (600, 400), "16.8"), (20, (600, 400), "8."), (12, (600, 280), "6.")]
)
def test_what_it_names__fixes_it(tmp_path: Path, side: int, size: tuple[int, int], seen: str) -> None:
    """Tiny sees at most 224x224 pixels, a token 28x28; 40 become 17; 20 are small already."""
    config = project(tmp_path, side, size)
    train, val = results(config)
    assert [result.status for result in (train, val)] == ["fail", "fail"]
    assert f"the median box of train.jsonl has a side of {seen}" in train.what
    assert (train.where, val.where) == ("data.train", "data.val")
    larger, _, windows = train.fix.partition("; or take windows: ")
    overrides = [word for word in shlex.split(larger.removeprefix("enlarge the images: ")) if word != "--set"]
    (passed,) = results(config, *overrides)
    assert passed.status == "pass"

    command, *settings = re.split(r", with | and ", windows)
    words = shlex.split(command)
    tile_dataset(Path(words[3]), tmp_path / "windows", Tiling(read_tiles(words[-1])))
    named = ["data.train=windows/train.jsonl", "data.val=windows/val.jsonl"]
    further = [setting for setting in settings if setting.startswith("data.")]
    (passed,) = results(config, *named, *further)
    assert passed.status == "pass"
    (passed,) = results(config, named[0], *settings)  # validation images are whole, and looked at in windows
    assert passed.status == "pass"


def test_it_runs__where_the_name_of_a_model_tells_its_limits(tmp_path: Path) -> None:
    """A token of Qwen3-VL covers 32x32 pixels, and images are not shrunk below 16 million pixels."""
    config = project(tmp_path, 30, (600, 400))
    found = results(config, "model.path=Qwen/Qwen3-VL-4B-Instruct")
    assert [(result.status, result.where) for result in found] == [
        ("fail", "data.train"),
        ("fail", "data.val"),
    ]
    assert "a side of 29.6 pixels as the model sees it, where one image token covers 32" in found[0].what
    assert found[0].fix.startswith("enlarge the images: --set data.min_pixels=")  # they are not shrunk


def test_it_is_skipped__where_nothing_can_be_known(tmp_path: Path) -> None:
    config = project(tmp_path, 40, (600, 400))
    (unknown,) = results(config, "model.path=somebody/cells")
    assert unknown.status == "skip"
    assert "only a download of the model would tell" in unknown.what
    for split in ("train", "val"):
        write(tmp_path / "data" / f"{split}.jsonl", {f"{split}.png": []})
    (empty,) = results(config)
    assert (empty.status, empty.what) == ("skip", "there is no box in an image of known size")
