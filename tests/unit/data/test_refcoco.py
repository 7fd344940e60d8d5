"""Referring expressions: references beside COCO instances, rows of JSON, and a pickle that stays shut."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.samples import Sample, SampleFile
from qwendet.errors import DataError
from qwendet.evaluation.dataset import open_dataset

NAME = "COCO_train2014_{:012}.jpg"


def reference(number: int, split: str, *sentences: str, **more: Any) -> dict[str, Any]:
    texts = [{"raw": text.upper(), "sent": text, "sent_id": 7, "tokens": text.split()} for text in sentences]
    named = {"ref_id": number, "ann_id": 10 + number, "image_id": 1, "category_id": 3, "split": split}
    return {**named, "file_name": "COCO_train2014_000000000001_0.jpg", "sentences": texts, **more}


REFERENCES = [
    reference(0, "train", "the dog left", "dog with a hat"),
    reference(1, "val", "right dog"),
    reference(1, "testA", "right dog"),
    reference(0, "testB", "dog near the door"),
]


def write_refer(root: Path, references: list[dict[str, Any]] = REFERENCES) -> Path:
    """The folders of refer: the data set's, and that of the images beside it."""
    images = root / "images" / "mscoco" / "images" / "train2014"
    images.mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(images / NAME.format(1))
    folder = root / "refcoco"
    folder.mkdir()
    instances = {
        "images": [{"id": 1, "file_name": NAME.format(1), "width": 80, "height": 60}],
        "annotations": [
            {"id": 10, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40], "iscrowd": 0},
            {"id": 11, "image_id": 1, "category_id": 3, "bbox": [40, 2, 30, 40], "iscrowd": 0},
        ],
        "categories": [{"id": 3, "name": "dog"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(unc).json").write_text(json.dumps(references))
    return folder


def samples_of(file: Path) -> list[Sample]:
    return list(SampleFile(file))


def test_convert__each_expression_is_a_sample_that_asks_for_it(tmp_path: Path) -> None:
    report = convert_dataset(write_refer(tmp_path), tmp_path / "out", Conversion("refcoco"))
    assert report.images == {"train": 2, "val": 1, "testA": 1, "testB": 1}
    assert not report.findings
    first, second = samples_of(tmp_path / "out" / "train.jsonl")
    assert first.student.labels == ("the dog left",)
    assert [(item.desc, item.bbox_2d) for item in first.student.objects] == [
        ("the dog left", (1.0, 2.0, 31.0, 42.0))
    ]
    assert second.student.labels == ("dog with a hat",)
    (test,) = samples_of(tmp_path / "out" / "testA.jsonl")
    assert test.student.objects[0].bbox_2d == (40.0, 2.0, 70.0, 42.0)
    assert (tmp_path / "out" / test.student.image).is_file()
    assert len(list((tmp_path / "out" / "images").rglob("*.jpg"))) == 1


def test_eval__reads_it_where_it_lies_and_one_split_alone(tmp_path: Path) -> None:
    folder = write_refer(tmp_path)
    found = open_dataset(folder, Conversion("refcoco"))
    assert "its val split is measured" in found.notes[0]
    (only,) = open_dataset(folder, Conversion("refcoco", split="testB")).samples
    assert only.student.labels == ("dog near the door",)


def test_rows__bring_image_and_corners(tmp_path: Path) -> None:
    """As Qwen-VL's and InternVL's evaluations have them."""
    (tmp_path / "train2014").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "train2014" / NAME.format(1))
    row = {
        "image": f"data/coco/train2014/{NAME.format(1)}",
        "bbox": [1.5, 2, 31, 42],
        "height": 60,
        "width": 80,
    }
    file = tmp_path / "refcoco_testA.jsonl"
    file.write_text("".join(json.dumps(row | {"sent": text}) + "\n" for text in ("left dog", "dog")))
    report = convert_dataset(file, tmp_path / "out", Conversion("refcoco"))
    assert report.images == {"testA": 2}
    assert samples_of(tmp_path / "out" / "testA.jsonl")[0].student.objects[0].bbox_2d == (
        1.5,
        2.0,
        31.0,
        42.0,
    )


def test_hub__rows_with_their_annotation_as_text(tmp_path: Path) -> None:
    folder = write_refer(tmp_path)
    instances = json.loads((folder / "instances.json").read_text())
    raw = {
        "raw_anns": json.dumps(instances["annotations"][1]),
        "raw_image_info": json.dumps(instances["images"][0]),
    }
    (folder / "instances.json").unlink()
    (folder / "refs(unc).json").write_text(json.dumps([reference(5, "validation", "right dog", **raw)]))
    images = tmp_path / "images" / "mscoco" / "images" / "train2014"
    convert_dataset(folder, tmp_path / "out", Conversion("refcoco", image_dir=images))
    (only,) = samples_of(tmp_path / "out" / "val.jsonl")
    assert only.student.objects[0].bbox_2d == (40.0, 2.0, 70.0, 42.0)


def test_pickle__is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    folder = write_refer(tmp_path)
    (folder / "refs(unc).json").unlink()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(REFERENCES, protocol=2))
    with pytest.raises(DataError) as refused:
        convert_dataset(folder, tmp_path / "out", Conversion("refcoco"))
    (problem,) = refused.value.problems
    assert problem.what == "this is a pickle, which can run any code when it is opened"
    words = shlex.split(problem.fix[problem.fix.index("python -c") :])
    subprocess.run([sys.executable, *words[1:]], check=True)
    assert json.loads((folder / "refs(unc).json").read_text()) == REFERENCES
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("references", "what"),
    [
        ([reference(7, "val", "a dog")], "there is no annotation with the id 17 in instances.json"),
        ([reference(0, "val", " ")], "sent: expected a label text, got ' '"),
        ([reference(0, "val") | {"sentences": 3}], "sent: expected a label text, got None"),
        (
            [{"image": NAME.format(1), "sent": "dog", "bbox": [1, 2, "x", 4]}],
            "bbox: expected [x1, y1, x2, y2]",
        ),
        ([3], "expected an object, got 3"),
    ],
)
def test_mistake__names_the_element(references: list[Any], what: str, tmp_path: Path) -> None:
    folder = write_refer(tmp_path, references)
    with pytest.raises(DataError) as refused:
        convert_dataset(folder, tmp_path / "out", Conversion("refcoco"))
    (problem,) = refused.value.problems
    assert problem.what.startswith(what)
    assert re.search(r"refs\(unc\).json: \[0\]$", problem.where)


def test_several_lists__are_refused(tmp_path: Path) -> None:
    folder = write_refer(tmp_path)
    (folder / "refs(google).json").write_text("[]")
    with pytest.raises(DataError, match=r"got refs\(google\).json, refs\(unc\).json"):
        convert_dataset(folder, tmp_path / "out", Conversion("refcoco"))
