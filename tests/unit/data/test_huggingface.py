"""Data sets of the hub with a column ``objects``: image folders, and Parquet with the images inside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.detect import detect_format
from qwendet.errors import DataError
from tests.unit.data.test_quirks import lay_out
from tests.unit.data.tool_files import read, read_one, refusal

COCO = [[40, 8, 10, 20], [4, 30, 30, 10]]
"""[x, y, width, height] in an image of 64×48; as corners impossible."""
CORNERS = [[40, 8, 50, 28], [4, 30, 34, 40]]
"""The same boxes; as [x, y, width, height] they leave the image."""
BOXES = [("bolt", (40, 8, 50, 28)), ("nut", (4, 30, 34, 40))]


def line(boxes: list[list[Any]], name: str = "a.jpg", **objects: Any) -> str:
    names = {"category": ["bolt", "nut"][: len(boxes)]}
    return json.dumps({"file_name": name, "objects": {"bbox": boxes} | names | objects})


@pytest.mark.parametrize(("boxes", "form"), [(COCO, "[x, y, width, height]"), (CORNERS, "[x1, y1, x2, y2]")])
def test_image_folder__boxes_in_the_form_that_they_have(
    tmp_path: Path, boxes: list[list[Any]], form: str
) -> None:
    text = "\n".join([line(boxes), line([], "b.jpg")])
    found = read_one(tmp_path, {"train/metadata.jsonl": text, "train/a.jpg": 1, "train/b.jpg": 2})
    assert detect_format(tmp_path) == detect_format(tmp_path / "train" / "metadata.jsonl") == "huggingface"
    assert found.boxes == {"train/a.jpg": BOXES, "train/b.jpg": []}
    assert set(found.splits.values()) == {"train"}
    (told,) = found.findings["frame"]
    assert f": {form} (of 2 boxes " in told


def test_objects__as_a_list_and_with_flags(tmp_path: Path) -> None:
    own = [{"bbox": COCO[0], "label": "bolt", "iscrowd": 1}, {"bbox": COCO[1], "label": "nut", "iscrowd": 0}]
    text = json.dumps({"file_name": "a.jpg", "objects": own})
    folder = lay_out(tmp_path / "in", {"metadata.jsonl": text, "a.jpg": 1})
    convert_dataset(folder, tmp_path / "out", Conversion())
    (record,) = (json.loads(row) for row in (tmp_path / "out" / "all.jsonl").read_text().splitlines())
    assert [own.get("crowd", False) for own in record["objects"]] == [True, False]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (line(COCO, category=["bolt"]), "objects: expected as many of each, got 2 bbox, 1 category"),
        (line(COCO, category=[0, 1]), "metadata.jsonl:1: objects[0]: label: expected a label text, got 0"),
        (line([[1, 2, "x", 4]]), "bbox.2: expected a valid number"),
        (line([[1, 2, 3]]), "bbox.3: it is absent"),
        (line(COCO, "c.jpg"), "the image 'c.jpg' is absent"),
        (line([[0.1, 0.2, 90, 3]]), "the boxes are in no known form: of 1 boxes 1 are imp"),
    ],
)  # fmt: skip
def test_mistakes__are_told_with_their_place(tmp_path: Path, text: str, what: str) -> None:
    assert what in refusal(tmp_path, {"metadata.jsonl": text, "a.jpg": 1})


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(file: Path, rows: list[dict[str, Any]], names: list[str] | None = None) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra parquet")
    from pyarrow import parquet

    label = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "string", "_type": "Value"}
    objects = {"feature": {"bbox": {"_type": "Sequence"}, "category": label}, "_type": "Sequence"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "objects": objects}}}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=2)


def row(number: int, boxes: list[list[Any]], category: list[Any]) -> dict[str, Any]:
    image = {"bytes": png(number), "path": f"{number}.png"}
    return {"image_id": number, "image": image, "objects": {"bbox": boxes, "category": category}}


def test_parquet__images_inside_and_names_of_class_labels(tmp_path: Path) -> None:
    rows = [row(0, COCO, [0, 1]), row(1, [], []), row(2, COCO[:1], [1])]
    write_parquet(tmp_path / "in" / "data" / "train-00000-of-00001.parquet", rows, ["bolt", "nut"])
    write_parquet(tmp_path / "in" / "data" / "test-00000-of-00001.parquet", rows[:1], ["bolt", "nut"])
    assert detect_format(tmp_path / "in") == "parquet"
    found = read(tmp_path / "in")
    assert sorted(found.splits.values()) == ["test", "train", "train", "train"]
    assert sorted(len(boxes) for boxes in found.boxes.values()) == [0, 1, 2, 2]
    assert all(": [x, y, width, height] (of " in note for note in found.findings["frame"])
    report = convert_dataset(tmp_path / "in", tmp_path / "out", Conversion())
    assert report.boxes == {"test": {"bolt": 1, "nut": 1}, "train": {"bolt": 1, "nut": 2}}
    names = sorted(
        str(file.relative_to(tmp_path / "out" / "images")) for file in (tmp_path / "out").rglob("*.png")
    )
    assert names[0] == "data/test-00000-of-00001/0/0.png"
    assert len(names) == 4


def test_parquet__mistakes_name_file_and_row(tmp_path: Path) -> None:
    rows = [row(0, COCO, ["bolt", "nut"]), row(1, COCO[:1], ["<|x|>"])]
    write_parquet(tmp_path / "in" / "train.parquet", rows)
    (problem,) = read(tmp_path / "in").problems
    assert problem.where == f"{tmp_path / 'in' / 'train.parquet'}: row 1"
    assert problem.what.startswith("objects[0].desc: the label '<|x|>' holds special-token text")


def test_parquet__without_images_or_broken_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "in" / "train.parquet"
    write_parquet(
        file, [{"image": {"bytes": None, "path": "a.png"}, "objects": {"bbox": COCO, "category": ["a", "b"]}}]
    )
    (problem,) = read(file.parent).problems
    assert problem.what == "the row names the image 'a.png' and does not hold it"
    write_parquet(file, [row(0, COCO, ["bolt", "nut"])])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="expected a whole Parquet file"):
        read(file.parent)
