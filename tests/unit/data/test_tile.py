"""Training windows: what is left of boxes and pixels, which windows are kept, and that splits stay apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.samples import Sample, SampleFile
from qwendet.data.tile import Tiling, read_tiles, tile_dataset
from qwendet.errors import ConfigError, DataError
from qwendet.progress import Advance, shown_by

Objects = list[tuple[int, int, int, int]]


def write(file: Path, images: dict[str, Objects], size: tuple[int, int] = (100, 60)) -> Path:
    """A sample file; each object is a rectangle of one grey on black, the first 100, the next 110."""
    lines = []
    for name, objects in images.items():
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        for at, (x1, y1, x2, y2) in enumerate(objects):
            pixels[y1:y2, x1:x2] = 100 + 10 * at
        (file.parent / name).parent.mkdir(parents=True, exist_ok=True)
        pixels[0, 0] = len(name), sum(name.encode()) % 256, size[0] % 256  # no two images are alike
        Image.fromarray(pixels).save(file.parent / name, quality=95)
        record: dict[str, Any] = {"images": [name], "objects": []}
        record["objects"] = [{"bbox_2d": list(box), "desc": f"grey {at}"} for at, box in enumerate(objects)]
        lines.append(json.dumps(record) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


def windows(folder: Path, split: str = "train") -> dict[str, Sample]:
    return {sample.student.image: sample for sample in SampleFile(folder / f"{split}.jsonl")}


def test_tile_dataset__boxes_are_cut_and_lie_on_their_pixels(tmp_path: Path) -> None:
    objects: Objects = [(2, 2, 22, 12), (40, 20, 70, 40), (88, 50, 100, 60)]
    src = write(tmp_path / "src" / "train.jsonl", {"images/a.png": objects}).parent
    report = tile_dataset(src, tmp_path / "dst", Tiling(60, overlap=0.0, min_visible=0.3))
    assert report.images == {"train": 2}
    assert report.boxes == {"train": {"grey 0": 1, "grey 1": 2, "grey 2": 1}}
    found = windows(tmp_path / "dst")
    assert {name: [item.bbox_2d for item in sample.student.objects] for name, sample in found.items()} == {
        "images/a_0_0.png": [(2, 2, 22, 12), (40, 20, 60, 40)],
        "images/a_40_0.png": [(0, 20, 30, 40), (48, 50, 60, 60)],
    }
    for sample in found.values():
        assert sample.student.declared_size == (60, 60)
        with Image.open(tmp_path / "dst" / sample.student.image) as image:
            pixels = np.asarray(image)[..., 0]
        for item in sample.student.objects:
            rows, columns = np.nonzero(pixels == 100 + 10 * int(item.desc.split()[1]))
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert box == item.bbox_2d


def test_tile_dataset__shows_how_many_images_are_cut(tmp_path: Path) -> None:
    """Also of COCO, whose file does not begin with their number."""
    write(tmp_path / "all.jsonl", {"a.png": [(10, 10, 40, 40)], "b.png": [(20, 10, 40, 40)]})
    convert_dataset(tmp_path / "all.jsonl", tmp_path / "coco", Conversion(target="coco"))
    shown: list[tuple[str, int]] = []

    @contextmanager
    def show(description: str, total: int) -> Iterator[Advance]:
        yield lambda finished, text: shown.append((description, finished))

    with shown_by(show):
        tile_dataset(tmp_path / "coco", tmp_path / "dst", Tiling(read_tiles("2x1")))
    assert shown[-1] == ("cutting coco", 2)


@pytest.mark.parametrize(("min_visible", "kept"), [(0.33, 1), (0.34, 0), (0.0, 1)])
def test_tile_dataset__drops_boxes_of_which_too_little_is_left(
    tmp_path: Path, min_visible: float, kept: int
) -> None:
    """A third of the box is in the left window, two thirds in the right one, and no window holds it."""
    src = write(tmp_path / "src" / "train.jsonl", {"a.png": [(40, 20, 70, 40)]}).parent
    how = Tiling("2x1", overlap=0.0, min_visible=min_visible, negatives=1.0)
    report = tile_dataset(src, tmp_path / "dst", how)
    counts = [len(sample.student.objects) for sample in windows(tmp_path / "dst").values()]
    assert counts == [kept, 1]
    (note,) = report.findings["cut_everywhere"]
    assert note.endswith("train.jsonl:1: [40.0, 20.0, 70.0, 40.0] (grey 0)")


def test_tile_dataset__keeps_a_share_of_windows_without_boxes_by_seed(tmp_path: Path) -> None:
    images: dict[str, Objects] = {f"images/{at}.png": [] for at in range(12)}
    images["images/full.png"] = [(0, 0, 20, 20)]
    src = write(tmp_path / "src" / "train.jsonl", images).parent
    names = []
    for at, (share, seed) in enumerate([(0.5, 0), (0.5, 0), (0.5, 1), (0.0, 0), (1.0, 0)]):
        how = Tiling(20, negatives=share, seed=seed)
        report = tile_dataset(src, tmp_path / str(at), how)
        found = windows(tmp_path / str(at))
        assert all("full" in name or not sample.student.objects for name, sample in found.items())
        empty = {name for name, sample in found.items() if not sample.student.objects}
        assert report.findings["empty_windows"] == (f"train: {len(empty)} of 310",)
        assert len(found) - len(empty) == 2
        names.append(empty)
    assert names[0] == names[1] != names[2]
    assert 110 < len(names[0]) < 200
    assert (len(names[3]), len(names[4])) == (0, 310)


def test_tile_dataset__each_split_keeps_its_images(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write(src / "train.jsonl", {"t/a.png": [(0, 0, 50, 50)], "t/b.jpg": [(0, 0, 50, 50)]})
    write(src / "val.jsonl", {"v/a.png": [(0, 0, 50, 50)]})
    report = tile_dataset(src, tmp_path / "dst", Tiling(50))
    assert [file.name for file in report.files] == ["train.jsonl", "val.jsonl"]
    origins = {
        split: {
            Path(name).parent.name + "/" + Path(name).name.split("_")[0]
            for name in windows(tmp_path / "dst", split)
        }
        for split in ("train", "val")
    }
    assert origins == {"train": {"t/a", "t/b"}, "val": {"v/a"}}
    kinds = {Path(name).suffix for name in windows(tmp_path / "dst") if "/b_" in name}
    assert kinds == {".jpg"}
    assert windows(tmp_path / "dst").keys() >= {"images/t/a_0_0.png", "images/t/b_0_0.jpg"}


def test_tile_dataset__refuses_an_image_of_two_splits_under_any_name(
    tmp_path: Path, refusal: Callable[..., DataError]
) -> None:
    src = tmp_path / "src"
    write(src / "train.jsonl", {"a.png": [(0, 0, 50, 50)]})
    write(src / "val.jsonl", {"b.png": [(0, 0, 50, 50)]})
    shutil.copyfile(src / "a.png", src / "b.png")
    error = refusal(tile_dataset, src, tmp_path / "dst", Tiling(50))
    assert [problem.what for problem in error.problems] == ["the same image is in train and val"] * 2
    assert "qwendet data split" in error.problems[0].fix
    assert not (tmp_path / "dst").exists()


def test_tile_dataset__refuses_what_cannot_be_cut_and_leaves_nothing(
    tmp_path: Path, refusal: Callable[..., DataError]
) -> None:
    src = write(tmp_path / "src" / "train.jsonl", {"a.png": [(0, 0, 50, 50)]}).parent
    with pytest.raises(ConfigError, match="tiles of 100 would cut no image: the largest has 100x60 pixels"):
        tile_dataset(src, tmp_path / "dst", Tiling(100))
    (src / "notes.txt").write_text("kept", encoding="utf-8")
    assert "absent or empty" in refusal(tile_dataset, src, src, Tiling(50)).problems[0].what
    empty = write(tmp_path / "empty" / "train.jsonl", {"a.png": []}).parent
    error = refusal(tile_dataset, empty, tmp_path / "dst", Tiling(50, negatives=0.0))
    assert error.problems[0].what == "no window is left: none has a box"
    with (src / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"images": ["absent.png"], "objects": []}\n')
    assert "absent.png" in refusal(tile_dataset, src, tmp_path / "dst", Tiling(50)).problems[0].what
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "src"]


@pytest.mark.parametrize("text", ["auto", "off", "3x", "0", "-5", "3.5", ""])
def test_read_tiles__refuses_what_is_no_window(text: str) -> None:
    with pytest.raises(ConfigError, match="expected windows, got") as caught:
        read_tiles(text)
    assert caught.value.problems[0].fix == "write columns x rows such as 3x2, or pixels such as 640"
