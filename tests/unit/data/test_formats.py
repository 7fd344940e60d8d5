"""Which format a path holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwendet.data.formats.detect import detect_format
from qwendet.errors import DataError
from tests.unit.data.voc_files import Voc


@pytest.mark.parametrize("name", ["train.jsonl", "all.jsonl"])
def test_detect_format__jsonl(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert detect_format(tmp_path) == detect_format(tmp_path / name) == "jsonl"


def test_detect_format__voc(voc: Voc) -> None:
    voc.add("a")
    assert detect_format(voc.folder) == detect_format(voc.folder.parent) == "voc"


@pytest.mark.parametrize("name", ["instances.json", "annotations/instances_train.json"])
def test_detect_format__coco(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"images": [],' + " " * (1 << 20) + '"annotations": []}', encoding="utf-8")
    assert detect_format(tmp_path) == detect_format(path) == "coco"


def test_detect_format__coco__key_across_two_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{" + " " * ((1 << 20) - 6) + '"annotations"', encoding="utf-8")
    assert detect_format(tmp_path) == "coco"


def test_detect_format__yolo(tmp_path: Path) -> None:
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").touch()
    assert detect_format(tmp_path) == "yolo"
    (tmp_path / "data.yaml").touch()
    assert detect_format(tmp_path / "data.yaml") == "yolo"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '[{"conversations": [{"from": "human", "value": ""}]}]'),
        ("a.json", '[{"messages": [{"role": "user"}], "images": []}]'),
        ("train.jsonl", '{"messages":[{"role":"user"}],"objects":{}}'),
        ("a.json", '[{"instruction": "", "input": "", "output": ""}]'),
    ],
)
def test_detect_format__conversations(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    assert detect_format(tmp_path) == detect_format(tmp_path / name) == "conversations"


def test_detect_format__nothing_known(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}", encoding="utf-8")
    for path in (tmp_path, tmp_path / "package.json"):
        with pytest.raises(DataError) as error:
            detect_format(path)
        assert str(error.value).startswith(f"{path}: no data set found: expected a .jsonl file")


def test_detect_format__empty_file(tmp_path: Path) -> None:
    (tmp_path / "instances.json").touch()
    with pytest.raises(DataError, match="expected a data set, got an empty file"):
        detect_format(tmp_path / "instances.json")


def test_detect_format__absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no such file or folder"):
        detect_format(tmp_path / "missing")


def test_detect_format__real_data(shared: Path) -> None:
    assert detect_format(shared / "data" / "bccd") == "voc"
    assert detect_format(shared / "data" / "nuts" / "data") == "coco"


def test_detect_format__the_only_data_set_of_a_folder(shared: Path, tmp_path: Path) -> None:
    assert detect_format(shared / "data" / "nuts") == "coco"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.yaml").touch()
        if name == "a":
            assert detect_format(tmp_path) == "yolo"
    with pytest.raises(DataError, match="there is no data set in this folder, but below it: a, b"):
        detect_format(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.json", '[{"image": "a.jpg", "label": [{"original_width": 1}]}]', "Label Studio's JSON-MIN"),
        ("a.json", '{"metadata": {"1_a": {"vid": "1", "xy": [2, 1, 1, 9, 9]}}}', "a project of VIA 3"),
        ("x.json", '[{"image_id": 1, "bbox": [], "score": 0.5}]', "a list of detections (COCO results)"),
        ("image_info_test.json", '{"images": [{"file_name": "a"}]}', "a COCO file without annotations"),
        ("data/boxes.csv", "filename,class,xmin,ymin", "a table of boxes"),
        ("labels.csv", "images/a.jpg,1,2,3,4,bolt", "a table of boxes"),
        ("labelTxt/a.txt", "", "DOTA's label files"),
        ("training/label_2/a.txt", "", "KITTI's label files"),
    ],
)
def test_detect_format__annotations_of_other_tools(
    tmp_path: Path, name: str, content: str, what: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        detect_format(tmp_path)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"no data set found, but {what}")
    assert problem.fix
