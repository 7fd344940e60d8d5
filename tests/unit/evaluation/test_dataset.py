"""What a detector is measured on, told as `data convert` is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwendet.data.formats.convert import Conversion
from qwendet.errors import DataError
from qwendet.evaluation.dataset import open_dataset
from tests.unit.data.test_quirks import XML, lay_out

SAMPLE = json.dumps({"images": ["a.jpg"], "objects": []})


@pytest.mark.parametrize(
    ("annotations", "source"),
    [({"voc/Annotations/a.xml": XML}, "auto"), ({"voc/Annotations/a.xml": XML}, "voc"),
     ({"voc/test.jsonl": SAMPLE}, "auto"), ({"voc/test.jsonl": SAMPLE}, "jsonl")],
)  # fmt: skip
def test_open_dataset__images_elsewhere(tmp_path: Path, annotations: dict[str, str], source: str) -> None:
    folder = lay_out(tmp_path, {"pictures/a.jpg": 1} | annotations)
    samples, *_ = open_dataset(folder / "voc", Conversion(source, image_dir=folder / "pictures"))
    assert [sample.student.image for sample in samples] == ["a.jpg"]
    with pytest.raises(DataError):
        open_dataset(folder / "voc")


def test_open_dataset__broken_annotations_are_left_out_and_told(tmp_path: Path) -> None:
    files = {"Annotations/a.xml": XML, "Annotations/b.xml": "<annotation>"}
    folder = lay_out(tmp_path, files | {"JPEGImages/a.jpg": 1, "JPEGImages/b.jpg": 2})
    with pytest.raises(DataError, match="expected an XML annotation"):
        open_dataset(folder)
    samples, notes, _ = open_dataset(folder, Conversion(skip_bad=True))
    assert [sample.student.image for sample in samples] == ["JPEGImages/a.jpg"]
    assert any("Left out 1" in note and "b.xml" in note for note in notes)
