"""Conversions: what is written, what is said, and nothing is half written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.data.formats.convert import (
    Conversion,
    conversion_notes,
    convert_dataset,
    write_source,
)
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.jsonl_writer import sample_line
from qwendet.data.formats.placing import Names, Placement
from qwendet.data.formats.records import Format, Record
from qwendet.data.images import open_image
from qwendet.data.samples import SampleFile
from qwendet.errors import DataError
from tests.unit.data.voc_files import HEIGHT, WIDTH, Voc, convert_voc, lines_of, voc_object


def test_convert_voc__copy(voc: Voc, tmp_path: Path) -> None:
    voc.add("a", voc_object((1, 2, 30.5, 40), extra="<difficult>1</difficult>"), voc_object((5, 5, 5, 9)))
    voc.add("b")
    voc.add("c")
    voc.split("train", "a")
    voc.split("val", "b")
    report = convert_voc(voc.folder, tmp_path / "out" / "data")
    assert report.files == tuple(tmp_path / "out" / "data" / f"{name}.jsonl" for name in ("train", "val"))
    assert lines_of(report.files[0]) == [
        {
            "images": ["images/a.jpg"],
            "objects": [{"bbox_2d": [1, 2, 30.5, 40], "desc": "cell", "difficult": True}],
            "width": WIDTH,
            "height": HEIGHT,
        }
    ]
    assert (report.images, report.boxes) == ({"train": 1, "val": 1}, {"train": {"cell": 1}, "val": {}})
    assert len(report.findings["zero_area"]) == 1
    assert report.findings["unlisted"] == (f"{voc.folder / 'Annotations' / 'c.xml'}: in no split list",)
    assert report.data_root is None
    assert sorted(path.name for path in (tmp_path / "out" / "data" / "images").iterdir()) == [
        "a.jpg",
        "b.jpg",
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]  # no partial folder stays


def test_convert_voc__link(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    report = convert_voc(voc.folder, tmp_path / "data", images="link")
    linked = tmp_path / "data" / "images" / "a.jpg"
    assert linked.samefile(voc.folder / "JPEGImages" / "a.jpg")
    assert not linked.is_symlink()
    assert open_image("images/a.jpg", report.files[0].parent, "x").size == (WIDTH, HEIGHT)


def test_convert_voc__link__impossible(voc: Voc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    voc.add("a")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(DataError, match=r"Invalid cross-device link.*copy the images instead"):
        convert_voc(voc.folder, tmp_path / "data", images="link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["voc"]


def test_convert_voc__reference(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    report = convert_voc(tmp_path, tmp_path / "data", images="reference")
    assert report.data_root == voc.folder.resolve()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["all.jsonl"]
    (sample,) = SampleFile(report.files[0])
    assert open_image(sample.student.image, report.data_root, "x").size == (WIDTH, HEIGHT)


def test_convert_voc__nothing_is_half_written(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    voc.add("b", xml="broken")
    with pytest.raises(DataError, match="broken file"):
        convert_voc(voc.folder, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_convert_voc__interrupted_while_copying(
    voc: Voc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    voc.add("a")
    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_voc(voc.folder, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_convert_voc__occupied_destination(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").touch()
    for dst in (tmp_path / "data", tmp_path / "data" / "notes.txt"):
        with pytest.raises(DataError) as error:
            convert_voc(voc.folder, dst)
        assert str(error.value) == f"{dst}: expected a folder that is absent or empty (give another folder)"


def test_convert_voc__empty_destination(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    (tmp_path / "data").mkdir()
    assert convert_voc(voc.folder, tmp_path / "data").images == {"all": 1}


def test_convert_voc__unwritable_destination(voc: Voc, tmp_path: Path) -> None:
    voc.add("a")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the data set .*Not a directory"):
        convert_voc(voc.folder, tmp_path / "file" / "data")


def test_convert_voc__image_of_two_splits_is_placed_once(
    voc: Voc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voc.add("a")
    voc.split("val", "a")
    voc.split("test", "a")
    copies: list[Path] = []
    copy = shutil.copyfile

    def count(source: Path, target: Path) -> Path:
        copies.append(source)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", count)
    assert convert_voc(voc.folder, tmp_path / "data").images == {"val": 1, "test": 1}
    assert len(copies) == 1


@pytest.mark.parametrize("images", ["copy", "reference"])
def test_convert_voc__real_data(shared: Path, tmp_path: Path, images: Placement) -> None:
    report = convert_voc(shared / "data" / "bccd" / "BCCD", tmp_path / "data", images=images)
    assert report.images == {"train": 205, "val": 87, "test": 72}
    totals = {
        label: sum(counts[label] for counts in report.boxes.values()) for label in ("RBC", "WBC", "Platelets")
    }
    assert totals == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}
    assert sum(totals.values()) == 4888 - 2
    assert sorted(Path(note.split(": ")[0]).stem for note in report.findings["zero_area"]) == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]
    assert report.findings.keys() == {"zero_area"}
    for path in report.files:
        root = report.data_root or path.parent
        for sample in SampleFile(path):
            turn = sample.student
            assert (root / turn.image).is_file()
            assert (turn.width, turn.height) == (640, 480)
    assert sum(len(SampleFile(path)) for path in report.files) == 364


# Whatever the format


def write_samples(
    folder: Path, *samples: tuple[str, str, list[dict[str, Any]]], size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Path:
    """JSONL of split, image and objects each."""
    for number, (split, name, objects) in enumerate(samples):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 0, 0)).save(folder / name)
        with (folder / f"{split}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"images": [name], "objects": objects}) + "\n")
    return folder


def dot(*box: float, **flags: bool) -> dict[str, Any]:
    return {"bbox_2d": list(box or (1, 2, 30, 40)), "desc": "dot", **flags}


def colours(folder: Path) -> set[int]:
    """The red of each image below: :func:`write_samples` gave each another."""
    found = set()
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            found.add(image.getpixel((0, 0))[0])  # type: ignore[index]
    return found


@pytest.mark.parametrize("target", ["jsonl", "coco", "voc", "yolo"])
def test_two_images_of_one_name__both_are_kept(tmp_path: Path, target: Format) -> None:
    source = write_samples(
        tmp_path / "in", ("train", "a/1.png", [dot()]), ("train", "b/1.PNG", []), ("val", "c/1.png", [])
    )
    (source / "b" / "1.PNG").rename(source / "b" / "1.png")
    lines = (source / "train.jsonl").read_text().replace("1.PNG", "1.png")
    (source / "train.jsonl").write_text(lines)
    report = (
        convert_dataset(source, tmp_path / "out", Conversion("jsonl", target=target))
        if target != "jsonl"
        else write_source(open_source(source), "in", tmp_path / "out", Conversion())
    )
    assert report.images == {"train": 2, "val": 1}
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3
    assert colours(tmp_path / "out") == {0, 1, 2}
    again = [item for item in open_source(tmp_path / "out").items if isinstance(item, Record)]
    assert sorted(len(record.turn.objects) for record in again) == [0, 0, 1]
    if target == "voc":
        assert report.findings["placed_as"] == (
            "'b/1.png' is now '1-2.png'",
            "'c/1.png' is now '1-3.png'",
        )


def test_names__differ_in_more_than_case_and_ending() -> None:
    names = Names(flat=True)
    wanted = ["x/a.jpg", "y/A.png", "z/a-2.jpg", "w/a.jpg"]
    assert [names.give("train", name, name) for name in wanted] == [
        "a.jpg",
        "A-2.png",
        "a-2-2.jpg",
        "a-3.jpg",
    ]
    assert names.give("val", "x/a.jpg", "a.jpg") == "a.jpg"


def test_strict__refuses_what_would_be_repaired(voc: Voc, tmp_path: Path) -> None:
    path = voc.add("a", voc_object((5, 5, 5, 9)))
    with pytest.raises(DataError) as error:
        convert_dataset(voc.folder, tmp_path / "out", Conversion(is_strict=True))
    (problem,) = error.value.problems
    assert problem.what.startswith(f"boxes without area left out: {path}: object 1 (cell)")
    assert problem.fix == "fix it, or convert without --strict"
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_skip_bad__leaves_out_images_and_lists_them(voc: Voc, tmp_path: Path) -> None:
    voc.add("a", voc_object((1, 2, 30, 40)))
    path = voc.add("b", voc_object((1, 2, 30, 40)), voc_object((9, 0, 1, 9)))
    report = convert_dataset(voc.folder, tmp_path / "out", Conversion(skip_bad=True))
    assert report.images == {"all": 1}
    assert [problem.where for problem in report.left_out] == [f"{path}: object 2 (cell)"]
    assert (tmp_path / "out" / "left-out.txt").read_text(encoding="utf-8") == (
        f"{path}: object 2 (cell): expected xmin ≤ xmax and ymin ≤ ymax, got [9, 0, 1, 9]\n"
    )
    assert conversion_notes(report)[-1].startswith("Left out 1, all listed in left-out.txt:\n")


def test_convert__empty_data_set_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError) as error:
        convert_dataset(tmp_path / "annotations.json", tmp_path / "out", Conversion())
    (problem,) = error.value.problems
    assert problem.what == "the data set holds no image"
    assert problem.fix == "give the folder that holds its images"
    assert not (tmp_path / "out").exists()


def test_skip_bad__with_nothing_left(voc: Voc, tmp_path: Path) -> None:
    voc.add("a", xml="broken")
    with pytest.raises(DataError, match="no image is left"):
        convert_dataset(voc.folder, tmp_path / "out", Conversion(skip_bad=True))
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


@pytest.mark.parametrize(("target", "name"), [("voc", "VOC"), ("yolo", "YOLO")])
def test_image_annotated_twice__only_where_the_format_can(tmp_path: Path, target: Format, name: str) -> None:
    source = write_samples(tmp_path / "in", ("train", "a.png", [dot()]), ("train", "a.png", []))
    with pytest.raises(DataError) as error:
        convert_dataset(source, tmp_path / "out", Conversion(target=target))
    assert f"train.jsonl:2: {name} holds one" in str(error.value)
    report = convert_dataset(source, tmp_path / "out", Conversion(target="coco"))
    assert report.images == {"train": 2}


def test_declared_labels__keep_their_order_and_the_unused_are_told(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "images").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(source / "images" / "a.png")
    (source / "labels").mkdir()
    (source / "labels" / "a.txt").write_text("2 0.5 0.5 0.2 0.2\n")
    (source / "classes.txt").write_text("z\ny\nx\n")
    report = convert_dataset(source, tmp_path / "out", Conversion(target="coco"))
    assert report.findings["unused"] == ("'z'", "'y'")
    content = json.loads(report.files[0].read_text())
    assert [(entry["id"], entry["name"]) for entry in content["categories"]] == [(1, "z"), (2, "y"), (3, "x")]
    assert content["annotations"][0]["category_id"] == 3


def test_whole__becomes_a_split_only_beside_others(tmp_path: Path) -> None:
    source = write_samples(tmp_path / "in", ("all", "a.png", [dot()]), ("test", "b.png", []))
    for target in ("coco", "voc", "yolo"):
        how = Conversion(target=target)  # type: ignore[arg-type]
        convert_dataset(source, tmp_path / target, how)
        found = [item for item in open_source(tmp_path / target).items if isinstance(item, Record)]
        assert sorted(record.split for record in found) == ["test", "train"]


def test_demonstrations__are_told(tmp_path: Path) -> None:
    source = write_samples(tmp_path / "in", ("train", "a.png", [dot()]))
    turn = json.loads((source / "train.jsonl").read_text())
    (source / "train.jsonl").write_text(json.dumps({"teachers": [turn], "student": turn}) + "\n")
    report = convert_dataset(source, tmp_path / "out", Conversion(target="coco"))
    assert report.findings["demonstrations"] == (f"{source}/train.jsonl:1: 1",)


def test_labels_of_samples__are_kept_or_told(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    Image.new("RGB", (40, 30)).save(source / "a.png")
    line = {"images": ["a.png"], "objects": [], "labels": ["a red hat", "cat"]}
    (source / "train.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (sample,) = SampleFile(source / "train.jsonl")
    assert json.loads(sample_line(sample.student, "b.png")) == {**line, "images": ["b.png"]}
    report = convert_dataset(source, tmp_path / "coco", Conversion(target="coco"))
    assert report.findings["labels_lost"] == (f"{source / 'train.jsonl'}:1: 'a.png'",)


def test_source__whose_images_are_elsewhere(tmp_path: Path) -> None:
    source = write_samples(tmp_path / "in", ("train", "photos/a.png", [dot()]))
    (source / "photos").rename(tmp_path / "photos")
    how = Conversion("jsonl", target="voc", image_dir=tmp_path)
    assert convert_dataset(source, tmp_path / "out", how).images == {"train": 1}
    how = Conversion("jsonl", target="voc", image_dir=tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected a folder of images, got none"):
        convert_dataset(source, tmp_path / "out2", how)


def test_unreadable_folder(voc: Voc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    voc.add("a")
    monkeypatch.setattr("os.listdir", refuse)
    for source in ("auto", "voc", "coco", "yolo"):
        with pytest.raises(DataError) as error:
            open_source(voc.folder, source)
        what = "it cannot be read (Permission denied)"
        assert str(error.value) == f"{voc.folder}: {what} (chmod -R u+rX {voc.folder})"


def test_broken_samples__name_their_line(tmp_path: Path) -> None:
    source = write_samples(tmp_path / "in", ("train", "a.png", [dot(0, 0, 500, 40)]))
    with (source / "train.jsonl").open("a") as lines:
        lines.write('{"images": ["../../etc/passwd"], "objects": []}\n{"images"\n')
    with pytest.raises(DataError) as error:
        convert_dataset(source, tmp_path / "out", Conversion("jsonl", target="coco"))
    wheres = [problem.where for problem in error.value.problems]
    file = source / "train.jsonl"
    assert wheres == [f"{file}:1: objects[0] (dot)", f"{file}:2", f"{file}:3"]


def test_cut_box__in_a_frame_that_is_sure(voc: Voc) -> None:
    path = voc.add("a", voc_object((0, 0, WIDTH + 2, 9)))
    report = convert_voc(voc.folder, voc.folder.parent / "out")
    note = f"{path}: object 1 (cell): [0, 0, 66, 9] cut to [0, 0, 64, 9]"
    assert report.findings == {"cut": (note,)}


@pytest.mark.parametrize("data", ["nuts", "bccd"])
def test_real_data__through_every_format(shared: Path, tmp_path: Path, data: str) -> None:
    """Boxes of the last are those of the first to a thousandth of a pixel."""
    direct = convert_dataset(shared / "data" / data, tmp_path / "direct", Conversion(images="reference"))
    source = shared / "data" / data
    placement: Placement = "copy"  # the first: the data may be on another file system
    for target in ("coco", "voc", "yolo", "jsonl"):
        convert_dataset(source, tmp_path / target, Conversion(target=target, images=placement))  # type: ignore[arg-type]
        source, placement = tmp_path / target, "link"
    for file in direct.files:
        found, expected = lines_of(tmp_path / "jsonl" / file.name), lines_of(file)
        by_name = {Path(line["images"][0]).name: line for line in found}
        assert len(by_name) == len(expected)
        for line in expected:
            other = by_name[Path(line["images"][0]).name]
            assert (other["width"], other["height"]) == (line["width"], line["height"])
            for one, two in zip(other["objects"], line["objects"], strict=True):
                assert one["desc"] == two["desc"]
                assert one["bbox_2d"] == pytest.approx(two["bbox_2d"], abs=0.001)
