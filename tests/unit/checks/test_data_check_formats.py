"""data check and data stats on COCO, VOC and YOLO: the rules of samples, places in the user's own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from qwendet.checks.config import annotated, scan
from qwendet.checks.config.sample_files import find_data
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import read_data, run_data_checks
from qwendet.checks.config.summary import summary_tables
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.errors import DataError, Result
from tests.planted.planting import HEIGHT, WIDTH, Project

FORMATS = ("coco", "voc", "yolo")
Spoil = Callable[[Path], None]


def dataset(tmp_path: Path, target: Any) -> Path:
    """A sound data set of this format: 12 training and 4 validation images."""
    project = Project.sound(tmp_path / "jsonl")
    project.write()
    convert_dataset(project.folder, tmp_path / target, Conversion(target=target))
    return tmp_path / target


def run_check(*paths: Path, images: Any = "header") -> list[Result]:
    return run_data_checks(find_data(paths), None, Thoroughness(images))[0]


def files_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("images", ["none", "header", "full"])
def test_sound_data__passes_and_nothing_is_written(tmp_path: Path, target: str, images: str) -> None:
    folder = dataset(tmp_path, target)
    before = files_in(tmp_path)
    results = run_check(folder, images=images)
    assert [result for result in results if result.status == "fail"] == []
    whats = {result.id: result.what for result in results}
    assert (
        whats["config.data.samples"]
        == f"every sample can be read: 4 in val of {target}, 12 in train of {target}"
    )
    assert whats["config.data.annotations"] == "annotations, images and splits belong together"
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("target", FORMATS)
def test_stats__are_those_of_the_samples(tmp_path: Path, target: str) -> None:
    folder = dataset(tmp_path, target)
    seen, broken = read_data(find_data([folder]), None, Thoroughness())
    of_jsonl, _ = read_data(find_data([tmp_path / "jsonl"]), None, Thoroughness())
    tables = [table.rows for table in summary_tables(seen.splits)]
    assert tables == [table.rows for table in summary_tables(of_jsonl.splits)]
    assert (tables[0][1][5], broken) == (36, 0)


def test_worker_processes__find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of three samples, by two processes from the first one on."""
    folder = dataset(tmp_path, "coco")
    edit_coco(folder, lambda record: record["annotations"][3].update(bbox=[60, 2, 30, 40]))
    edit_coco(folder, lambda record: record["images"][7].update(file_name="gone.jpg"))
    alone = run_check(folder)
    monkeypatch.setattr(annotated, "PIECE_SAMPLES", 3)
    monkeypatch.setattr(scan, "FEW_SAMPLES", 0)
    how = Thoroughness(workers=2)
    together, tables = run_data_checks(find_data([folder]), None, how)
    assert [tell(result) for result in together] == [tell(result) for result in alone]
    assert len([result for result in together if result.status == "fail"]) >= 2
    assert tables


def tell(result: Result) -> tuple[str, str, str, str]:
    return result.id, result.status, result.what, result.where


def test_format__as_it_is_said_to_be(tmp_path: Path) -> None:
    """Beside a sample file, which is what would be recognised."""
    folder = dataset(tmp_path, "coco")
    (folder / "train.jsonl").write_text('{"images": ["a.jpg"], "objects": []}\n', encoding="utf-8")
    assert find_data([folder]).datasets == {}
    found = find_data([folder], "coco")
    results, _ = run_data_checks(found, None, Thoroughness())
    assert [result for result in results if result.status == "fail"] == []
    with pytest.raises(DataError, match=r"expected a \.jsonl file, or a folder"):
        find_data([folder / "annotations"], "jsonl")


def edit_coco(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "annotations" / "instances_train.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def coco_box(*box: float) -> Spoil:
    return lambda folder: edit_coco(folder, lambda record: record["annotations"][4].update(bbox=list(box)))


def coco_repeats(folder: Path) -> None:
    edit_coco(folder, lambda record: record["annotations"][4].update(record["annotations"][3], id=5))


def coco_xyxy(record: dict[str, Any]) -> None:
    for entry in record["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x, y, x + width, y + height]


def voc_box(folder: Path) -> None:
    edit_text(folder / "Annotations" / "train_3.xml", f"<xmax>{WIDTH}<", f"<xmax>{WIDTH + 1}<")


def voc_size(folder: Path) -> None:
    edit_text(folder / "Annotations" / "train_3.xml", f"<width>{WIDTH}<", f"<width>{2 * WIDTH}<")


def voc_turned(folder: Path) -> None:
    """The annotation says what is stored; the picture is shown upright."""
    path = folder / "JPEGImages" / "train_3.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(path) as image:
        image.save(path, exif=exif)


def voc_renamed(folder: Path) -> None:
    edit_text(folder / "Annotations" / "train_3.xml", ">train_3.png<", ">IMG_0007.JPG<")


def yolo_line(folder: Path) -> None:
    (folder / "labels" / "train" / "train_3.txt").write_text("0 0.5 0.5 0.2 0.2\n0 0.9 0.5 0.3 0.2\n")


def broken_image(folder: Path) -> None:
    path = next(folder.rglob("train_3.png"))
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("target", "spoil", "check", "where", "what"),
    [
        ("coco", coco_box(1, 2, 0, 9), "data.samples", "train.json: annotations[4] (white cell)",
         "the box [1, 2, 1, 11] has no area"),
        ("coco", coco_box(1, 2, WIDTH, 9), "boxes.inside", "train.json: annotations[4] (white cell)",
         f"the box [1, 2, {WIDTH + 1}, 11] leaves images/train_1.png, which is {WIDTH}x{HEIGHT}"),
        ("coco", coco_box(1, 2, -3, 9), "data.samples", "train.json: annotations[4]",
         "bbox: expected width and height of at least 0, got [1, 2, -3, 9]"),
        ("coco", coco_repeats, "boxes.duplicate", "train.json: annotations[4] (red cell)",
         "train.json: annotations[3] (red cell)"),
        ("coco", lambda folder: edit_coco(folder, coco_xyxy), "boxes.format", "train.json: images[0]",
         "the boxes look like [x1, y1, x2, y2] pixels: as [x, y, width, height] pixels, "),
        ("coco", broken_image, "images.open", "train.json: images[3]", "is truncated or broken"),
        ("voc", voc_box, "boxes.inside", "train_3.xml: object 1 (red cell)", f"is {WIDTH}x{HEIGHT}"),
        ("voc", voc_size, "images.size", "train_3.xml", f"declared {2 * WIDTH}×{HEIGHT} but"),
        ("voc", voc_turned, "images.orientation", "train_3.xml", "drawn before the EXIF orientation"),
        ("voc", voc_renamed, "data.annotations", "Annotations/train_3.xml",
         "annotations name another image file than the one used: <filename> is 'IMG_0007.JPG'"),
        ("yolo", yolo_line, "boxes.inside", "labels/train/train_3.txt:2 (red cell)", "leaves images/"),
        ("yolo", broken_image, "data.samples", "labels/train/train_3.txt", "is truncated or broken"),
    ],
)  # fmt: skip
def test_bug__is_named_with_its_place(
    tmp_path: Path, target: str, spoil: Spoil, check: str, where: str, what: str
) -> None:
    folder = dataset(tmp_path, target)
    spoil(folder)
    failed = [result for result in run_check(folder) if result.status == "fail"]
    (found,) = [result for result in failed if result.id == f"config.{check}"]
    assert found.where.startswith(str(folder))
    assert found.where.endswith(where)
    assert what in found.what


def test_image_in_two_splits__is_named_by_its_annotation(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "voc")
    images = folder / "JPEGImages"
    (images / "train_3.png").write_bytes((images / "val_0.png").read_bytes())
    failed = {result.id: result for result in run_check(folder) if result.status == "fail"}
    found = failed["config.data.train_val_overlap"]
    assert found.where == str(folder / "Annotations" / "train_3.xml")
    assert "'JPEGImages/train_3.png', the same as 'JPEGImages/val_0.png', is also in validation" in found.what


def test_what_a_format_allows__is_told_once_and_passes(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "yolo")
    for index in (2, 3):
        (folder / "labels" / "train" / f"train_{index}.txt").unlink()
    edit_text(folder / "data.yaml", "1: white cell", "1: white cell\n  2: platelet")
    told = [result for result in run_check(folder) if result.id == "config.data.annotations"]
    assert [(result.status, result.what, Path(result.where).name) for result in told] == [
        ("pass", "note: 2 images have no label file and count as negatives", "train_3.png"),
        ("pass", "note: 1 declared labels have no box", "'platelet'"),
    ]


def test_split_in_two_data_sets__is_refused(tmp_path: Path) -> None:
    folders = [dataset(tmp_path / str(number), "coco") for number in range(2)]
    with pytest.raises(DataError) as caught:
        run_check(*folders)
    assert f"{folders[0]} and {folders[1]} both hold train samples" in str(caught.value)


def test_everything_broken__is_a_failure(tmp_path: Path) -> None:
    """Without any sample the other rules are skipped; what was wrong must not be."""
    folder = dataset(tmp_path, "voc")
    for path in (folder / "Annotations").iterdir():
        path.write_text("<annotation>")
    failed = [result for result in run_check(folder) if result.status == "fail"]
    assert len(failed) == 16
    assert {result.id for result in failed} == {"config.data.samples"}


def test_rounding_of_fractions__leaves_no_image(tmp_path: Path) -> None:
    """Few places are off by a thousandth of a pixel: no conversion tells that, nor does the check."""
    folder = dataset(tmp_path, "yolo")
    line = "0 0.9500035 0.5 0.1 1\n"  # its right edge is at 1.0000035, 160.0006 pixels
    (folder / "labels" / "train" / "train_3.txt").write_text(line)
    assert [result for result in run_check(folder) if result.status == "fail"] == []
