"""YOLO: settings of every kind, lines of every kind, and mistakes, each named with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import ExifTags, Image

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.detect import detect_format, open_source
from qwendet.data.formats.records import Finding, Record
from qwendet.errors import DataError, Problem

WIDTH, HEIGHT = 80, 40


def image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


def label(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def settings(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"names": ["cell", "dot"]} | values), encoding="utf-8")
    return path


def small(folder: Path, *lines: str, **values: Any) -> Path:
    """One image with these lines."""
    image(folder / "images" / "train" / "a.jpg")
    settings(folder, **({"train": "images/train"} | values))
    return label(folder / "labels" / "train" / "a.txt", *lines)


def records(path: Path, **options: Any) -> list[Record]:
    return [item for item in open_source(path, "yolo", **options).items if isinstance(item, Record)]


def problems(path: Path) -> list[str]:
    found = [item for item in open_source(path, "yolo").items if isinstance(item, Problem)]
    return [f"{problem.where}: {problem.what}" for problem in found]


def findings(path: Path) -> list[Finding]:
    return [finding for record in records(path) for finding in record.findings]


def places(path: Path, **options: Any) -> list[tuple[str, str, str, int]]:
    """Split, image, name and number of objects of each record."""
    return [
        (record.split, turn.image, record.name, len(turn.objects))
        for record in records(path, **options)
        for turn in [record.turn]
    ]


# Layouts

LINE = "0 0.5 0.5 0.25 0.5"


def test_settings__folders_lists_and_names(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "x/deep/2.JPG", "y/1.jpg", "z/3.png"):
        image(tmp_path / "images" / name)
        label((tmp_path / "labels" / name).with_suffix(".txt"), LINE)
    (tmp_path / "test.txt").write_text("./images/z/3.png\n\n", encoding="utf-8")
    path = settings(
        tmp_path, train=["images/x"], val="images/y", test="test.txt", names={0: "cell", 3: 7}, nc=2
    )
    expected = [
        ("train", "images/x/1.jpg", "1.jpg", 1),
        ("train", "images/x/deep/2.JPG", "deep/2.JPG", 1),
        ("val", "images/y/1.jpg", "1.jpg", 1),
        ("test", "images/z/3.png", "z/3.png", 1),
    ]
    assert places(path) == places(tmp_path) == expected
    assert detect_format(tmp_path) == detect_format(path) == "yolo"


def test_settings__roboflow_points_one_folder_too_high(tmp_path: Path) -> None:
    for folder in ("train", "valid"):
        image(tmp_path / folder / "images" / "a.jpg")
        label(tmp_path / folder / "labels" / "a.txt", LINE)
    settings(tmp_path, train="../train/images", val="../valid/images", nc=2, roboflow={"x": 1})
    assert places(tmp_path) == [
        ("train", "train/images/a.jpg", "a.jpg", 1),
        ("val", "valid/images/a.jpg", "a.jpg", 1),
    ]


def test_settings__path_of_another_machine(tmp_path: Path) -> None:
    small(tmp_path, LINE, path="/content/data", train="/content/data/images/train")
    assert places(tmp_path) == [("train", "images/train/a.jpg", "a.jpg", 1)]


def test_settings__path_below(tmp_path: Path) -> None:
    small(tmp_path / "inner", LINE)
    (tmp_path / "inner" / "data.yaml").unlink()
    settings(tmp_path, path="inner", train="images/train")
    assert places(tmp_path) == [("train", "inner/images/train/a.jpg", "a.jpg", 1)]


def test_settings__same_folder_for_training_and_validation_is_no_split(tmp_path: Path) -> None:
    small(tmp_path, LINE, val="images/train")
    assert places(tmp_path) == [("all", "images/train/a.jpg", "a.jpg", 1)]


def test_darknet__as_cvat_writes(tmp_path: Path) -> None:
    image(tmp_path / "obj_train_data" / "a.jpg")
    label(tmp_path / "obj_train_data" / "a.txt", LINE)
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\n", encoding="utf-8")
    (tmp_path / "obj.names").write_text("cell\ndot\n\n", encoding="utf-8")
    text = "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    (tmp_path / "obj.data").write_text(text, encoding="utf-8")
    assert places(tmp_path) == [("train", "obj_train_data/a.jpg", "obj_train_data/a.jpg", 1)]


def test_settings__a_split_that_is_not_there(tmp_path: Path) -> None:
    small(tmp_path, LINE, test="../test/images")
    found = [item for item in open_source(tmp_path, "yolo").items if isinstance(item, Finding)]
    what = "there is no '../test/images' in the data set's folder"
    assert found == [Finding("no_split", f"{tmp_path}/data.yaml: test", what)]


@pytest.mark.parametrize("classes", ["classes.txt", "labels/classes.txt"])
def test_folders__without_settings(tmp_path: Path, classes: str) -> None:
    image(tmp_path / "images" / "a.jpg")
    label(tmp_path / "labels" / "a.txt", LINE)
    label(tmp_path / classes, "cell")
    assert places(tmp_path) == [("all", "images/a.jpg", "a.jpg", 1)]
    assert problems(tmp_path) == []


def test_folders__all_in_one(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    label(tmp_path / "a.txt", LINE)
    label(tmp_path / "classes.txt", "cell")
    assert detect_format(tmp_path) == "yolo"
    assert places(tmp_path) == [("all", "a.jpg", "a.jpg", 1)]


def test_images_elsewhere(tmp_path: Path) -> None:
    small(tmp_path / "data", LINE)
    (tmp_path / "data" / "images").rename(tmp_path / "images")
    assert places(tmp_path / "data", image_dir=tmp_path) == [("train", "images/train/a.jpg", "a.jpg", 1)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": None}, "data.yaml: names: expected a list or index: name pairs, got None"),
        ({"names": [True]}, "data.yaml: names[0]: expected a name, got True (put it into quotes)"),
        ({"names": {"a": "b"}}, "data.yaml: names: expected a class index, got 'a'"),
        ({"names": ["<|im_end|>"]}, "the label '<|im_end|>' holds special-token text"),
        ({"nc": 3}, "data.yaml: nc is 3, but there are 2 names"),
        ({"train": None}, "data.yaml: expected train, val or test, got none"),
        ({"train": 3}, "data.yaml: train: expected folders or .txt files, got 3"),
        ({"train": "nowhere"}, "data.yaml: train: there is no 'nowhere' in the data set's folder"),
        ({"path": ".."}, "data.yaml: path: path leads out of the data set: '..'"),
        ({"kpt_shape": [17]}, "data.yaml: kpt_shape: expected [points, numbers], got [17]"),
    ],
)
def test_settings__broken(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    small(tmp_path / "data", LINE, **values)
    with pytest.raises(DataError) as error:
        records(tmp_path / "data")
    assert message in str(error.value)


def test_settings__no_yaml_and_no_names(tmp_path: Path) -> None:
    small(tmp_path, LINE)
    (tmp_path / "data.yaml").write_text("a: [b", encoding="utf-8")
    with pytest.raises(DataError, match="expected YAML, got a broken file"):
        records(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"expected data.yaml or classes.txt, got neither: nothing says what"):
        records(tmp_path)


def test_list__names_an_image_that_is_nowhere(tmp_path: Path) -> None:
    small(tmp_path, LINE, train="train.txt")
    (tmp_path / "train.txt").write_text("../../etc/passwd\nimages/train/a.jpg\n", encoding="utf-8")
    (problem,) = problems(tmp_path)
    assert f"{tmp_path}/train.txt:1: the image '../../etc/passwd' is nowhere in" in problem
    assert places(tmp_path) == [("train", "images/train/a.jpg", "train/a.jpg", 1)]


def test_list__names_no_image_that_is_there(tmp_path: Path) -> None:
    small(tmp_path, LINE, train="train.txt")
    (tmp_path / "train.txt").write_text("x/b.jpg\nx/c.jpg\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        records(tmp_path)
    assert [problem.where for problem in error.value.problems] == [
        str(tmp_path), f"{tmp_path}/train.txt:1", f"{tmp_path}/train.txt:2"
    ]  # fmt: skip


def test_list__names_an_image_twice(tmp_path: Path) -> None:
    """Its boxes used to be there twice."""
    small(tmp_path, LINE, train="train.txt")
    (tmp_path / "train.txt").write_text("images/train/a.jpg\n" * 2, encoding="utf-8")
    (found,) = [item for item in open_source(tmp_path, "yolo").items if isinstance(item, Finding)
                if item.kind == "listed_again"]  # fmt: skip
    assert (found.where, len(records(tmp_path))) == (f"{tmp_path}/train.txt:2", 1)


def test_settings__path_with_the_name_of_the_folder(tmp_path: Path) -> None:
    """As ``../coco128/images/train2017`` of YOLOv5, wherever the data set lies."""
    small(tmp_path, LINE, train="../coco128/images/train")
    assert places(tmp_path) == [("train", "images/train/a.jpg", "a.jpg", 1)]


@pytest.mark.parametrize(
    ("images", "labels"),
    [("img", "labels"), ("JPEGImages", "labels"), ("test/images", "test/Labels"), ("a/pics", "a/labels")],
)
def test_labels__folders_as_people_name_them(tmp_path: Path, images: str, labels: str) -> None:
    """Such images used to count as negatives."""
    image(tmp_path / images / "a.jpg")
    label(tmp_path / labels / "a.txt", LINE)
    label(tmp_path / labels / "b.txt", LINE)
    settings(tmp_path, train=images)
    assert [count for *_, count in places(tmp_path)] == [1]
    assert problems(tmp_path) == [f"{tmp_path}/{labels}/b.txt: the image of these labels is absent"]


def test_labels__of_one_folder_are_not_those_of_two_images(tmp_path: Path) -> None:
    for name in ("train", "val"):
        image(tmp_path / name / "a.jpg")
    label(tmp_path / "labels" / "a.txt", LINE)
    settings(tmp_path, train="train", val="val")
    (problem,) = problems(tmp_path)
    assert problem == f"{tmp_path}/labels/a.txt: 'train/a.jpg' and 'val/a.jpg' both would have these labels"


def test_darknet__list_of_cvat_and_images_elsewhere(tmp_path: Path) -> None:
    image(tmp_path / "pictures" / "a.jpg")
    label(tmp_path / "cvat" / "obj_train_data" / "a.txt", LINE)
    label(tmp_path / "cvat" / "train.txt", "data/obj_train_data/a.jpg")
    label(tmp_path / "cvat" / "obj.names", "cell")
    label(tmp_path / "cvat" / "obj.data", "train = data/train.txt", "names = data/obj.names")
    assert places(tmp_path / "cvat", image_dir=tmp_path / "pictures") == [("train", "a.jpg", "a.jpg", 1)]


def test_darknet__as_roboflow_writes(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        image(tmp_path / name / "a.jpg")
        label(tmp_path / name / "a.txt", LINE)
        label(tmp_path / name / "_darknet.labels", "cell")
    assert places(tmp_path) == [("train", "train/a.jpg", "a.jpg", 1), ("val", "valid/a.jpg", "a.jpg", 1)]


# Lines


def test_record__boxes_polygons_and_blank_lines(tmp_path: Path) -> None:
    file = small(
        tmp_path, "0 0.5 0.5 0.25 0.5", "", "1 0.1 0.2 0.3 0.25 0.2 0.9", "0 0 0 0.25 0.25 0.5 0.25 0.5 0"
    )
    (record,) = records(tmp_path)
    turn = record.turn
    assert (turn.width, turn.height) == (WIDTH, HEIGHT)
    assert [(found.desc, found.bbox_2d) for found in turn.objects] == [
        ("cell", (30, 10, 50, 30)),
        ("dot", (8, 8, 24, 36)),
        ("cell", (0, 0, 40, 10)),
    ]
    assert [(finding.kind, finding.note) for finding in record.findings] == [
        ("derived", f"{file}:3 (dot): [8, 8, 24, 36]"),
        ("derived", f"{file}:4 (cell): [0, 0, 40, 10]"),
    ]


def test_record__key_points(tmp_path: Path) -> None:
    small(tmp_path, "0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 0", kpt_shape=[2, 3])
    (record,) = records(tmp_path)
    assert (record.turn.objects[0].bbox_2d, record.findings) == ((30, 10, 50, 30), ())


def test_record__displayed_image(tmp_path: Path) -> None:
    small(tmp_path, "0 0.5 0.5 0.5 0.5")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    (record,) = records(tmp_path)
    assert (record.turn.width, record.turn.height) == (HEIGHT, WIDTH)
    assert record.turn.objects[0].bbox_2d == (10, 20, 30, 60)


def test_negatives__empty_file_and_no_file(tmp_path: Path) -> None:
    small(tmp_path)
    image(tmp_path / "images" / "train" / "b.jpg")
    assert [entry[1:] for entry in places(tmp_path)] == [
        ("images/train/a.jpg", "a.jpg", 0),
        ("images/train/b.jpg", "b.jpg", 0),
    ]
    assert [(found.kind, found.note) for found in findings(tmp_path)] == [
        ("unlabelled", f"{tmp_path}/images/train/b.jpg")
    ]


def test_no_label_file_at_all(tmp_path: Path) -> None:
    small(tmp_path).unlink()
    with pytest.raises(DataError, match=r"no image has a label file \(expected labels/ beside images/\)"):
        records(tmp_path)
    label(tmp_path / "labelTxt" / "a.txt", "1 1 9 1 9 9 1 9 cell 0")
    with pytest.raises(DataError, match="no image has a label file, but there are DOTA's label files"):
        records(tmp_path)


@pytest.mark.parametrize(
    ("line", "kind", "note"),
    [
        ("0 0.5 0.5 0 0.2", "zero_area", "[40, 16, 40, 24] has no area, left out"),
        ("0 0 0.5 0.02 0.5", "clipped", "[-0.8, 10, 0.8, 30] cut to [0, 10, 0.8, 30]"),
        ("0 0.95 0.5 0.2 0.5", "cut", "[68, 10, 84, 30] cut to [68, 10, 80, 30]"),
    ],
)
def test_quirks__told_apart(tmp_path: Path, line: str, kind: str, note: str) -> None:
    file = small(tmp_path, line)
    assert [(found.kind, found.note) for found in findings(tmp_path)] == [(kind, f"{file}:1 (cell): {note}")]


def test_repeated_line(tmp_path: Path) -> None:
    small(tmp_path, LINE, LINE)
    assert [found.kind for found in findings(tmp_path)] == ["repeated"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.25", "expected a class index and four numbers, or a polygon, got 4 numbers"),
        ("0 0.5 0.5 0.25 0.5 0.93", "got 6 numbers"),
        ("0 0.5 0.5 0.25 0.5 0.9 0.1 0.1", "got 8 numbers"),
        ("2 0.5 0.5 0.25 0.5", "the class index 2 is not among the 2 names"),
        ("-1 0.5 0.5 0.25 0.5", "the class index -1 is not among the 2 names"),
        ("0.5 0.5 0.5 0.25 0.5", "the class index 0.5 is not among the 2 names"),
        ("cell 0.5 0.5 0.25 0.5", "expected numbers, got 'cell 0.5 0.5 0.25 0.5'"),
        ("0 nan 0.5 0.25 0.5", "expected numbers, got '0 nan 0.5 0.25 0.5'"),
        ("0 0.5 0.5 1e999 0.5", "expected numbers, got '0 0.5 0.5 1e999 0.5'"),
        ("0 0.5 0.5 -0.25 0.5", "expected sizes of at least 0, got -0.25 and 0.5"),
        ("0 40 20 10 10", "expected fractions of the image from 0 to 1, got '0 40 20 10 10'"),
        ("0 1.5 0.5 0.25 0.5", "(cell): the box [110, 10, 130, 30] leaves the image of 80×40 by 50 pixels"),
    ],
)
def test_broken_line(tmp_path: Path, line: str, message: str) -> None:
    file = small(tmp_path, LINE, line)
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{file}:2")
    assert message in problem


def test_confidence__is_explained(tmp_path: Path) -> None:
    small(tmp_path, "0 0.5 0.5 0.25 0.5 0.93")
    (problem,) = [item for item in open_source(tmp_path, "yolo").items if isinstance(item, Problem)]
    assert problem.fix == "a sixth number is a detector's confidence: predictions are no ground truth"


def test_labels_without_image(tmp_path: Path) -> None:
    small(tmp_path, LINE)
    file = label(tmp_path / "labels" / "train" / "gone.txt", LINE)
    assert problems(tmp_path) == [f"{file}: the image of these labels is absent"]


def test_broken_image_and_binary_labels(tmp_path: Path) -> None:
    small(tmp_path, LINE).write_bytes(b"\xff\xfe0 0")
    image(tmp_path / "images" / "train" / "b.jpg")
    (tmp_path / "images" / "train" / "b.jpg").write_text("no", encoding="utf-8")
    first, second = problems(tmp_path)
    assert "labels/train/a.txt: cannot read the file as UTF-8 text" in first
    assert "'images/train/b.jpg' is not an image" in second


# What is written


def test_output__is_what_ultralytics_expects(tmp_path: Path, shared: Path) -> None:
    """Folders, keys and numbers as its documentation and loader say; its package needs torchvision."""
    convert_dataset(shared / "data" / "bccd", tmp_path / "yolo", Conversion(target="yolo", images="link"))
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == {0: "RBC", 1: "WBC", 2: "Platelets"} or sorted(data["names"]) == [0, 1, 2]
    assert (data["train"], data["val"], data["test"]) == ("images/train", "images/val", "images/test")
    assert "path" not in data  # then paths start from the file's own folder
    for photo in (tmp_path / "yolo" / "images" / "test").iterdir():
        lines = (tmp_path / "yolo" / "labels" / "test" / f"{photo.stem}.txt").read_text().splitlines()
        for line in lines:
            index, *numbers = line.split()
            assert int(index) in data["names"]
            assert len(numbers) == 4
            assert all(0 <= float(number) <= 1 for number in numbers)


def test_output__flags_are_beside(tmp_path: Path) -> None:
    small(tmp_path / "in", LINE, "1 0.5 0.5 0.5 0.5")
    (tmp_path / "in" / "flags.jsonl").write_text('{"labels": "labels/train/a.txt", "crowd": [2]}\n')
    (record,) = records(tmp_path / "in")
    assert [found.crowd for found in record.turn.objects] == [False, True]
    (tmp_path / "in" / "flags.jsonl").write_text('{"labels": 3\n')
    with pytest.raises(DataError, match="expected flags as data convert writes them"):
        records(tmp_path / "in")
