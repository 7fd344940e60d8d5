"""Predictions for Label Studio and FiftyOne: what they read of them is what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwendet.data.formats.predictions import write_predictions_for
from qwendet.errors import DataError
from qwendet.inference.detections import Detection, Prediction
from tests.property.test_round_trips import boxes, labels, png
from tests.unit.data.tool_files import read

SIZE = (640, 480)


def found(*detections: tuple[tuple[float, ...], str, float], image: str = "set 1/a.png") -> str:
    own = tuple(Detection(box, desc, score, "head") for box, desc, score in detections)  # type: ignore[arg-type]
    return Prediction(image, *SIZE, own, 0).to_json() + "\n"


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.lists(st.tuples(boxes(SIZE), labels, st.floats(0, 1)), max_size=4))
def test_labelstudio__boxes_come_back_as_annotations(
    drawn: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pre-annotations that somebody accepts, exported, are the boxes that were found."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "found.jsonl").write_text(found(*drawn), encoding="utf-8")
    assert (
        write_predictions_for(
            "labelstudio", folder / "found.jsonl", folder / "out.json", 0, "/data/local-files/?d="
        )
        == 1
    )
    ((task,),) = ([*json.loads((folder / "out.json").read_text("utf-8"))],)
    (predicted,) = task["predictions"]
    assert [region["score"] for region in predicted["result"]] == [score for _, _, score in drawn]
    (folder / "in" / "set 1").mkdir(parents=True)
    (folder / "in" / "set 1" / "a.png").write_bytes(png(SIZE))
    accepted = {"data": task["data"], "annotations": [{"result": predicted["result"]}]}
    (folder / "in" / "export.json").write_text(json.dumps([accepted]), encoding="utf-8")
    ((_, own),) = read(folder / "in", "labelstudio").boxes.items()
    assert [label for label, _ in own] == [label for _, label, _ in drawn]
    for (_, box), (expected, _, _) in zip(own, drawn, strict=True):
        assert box == pytest.approx(expected, abs=1e-3)


def test_fiftyone__fractions_and_confidence_by_path(tmp_path: Path) -> None:
    lines = found(((64, 48, 320, 240), "bolt", 0.75), ((0, 0, 9, 9), "nut", 0.2)) + found(image="/x/b.jpg")
    (tmp_path / "found.jsonl").write_text(lines, encoding="utf-8")
    assert write_predictions_for("fiftyone", tmp_path / "found.jsonl", tmp_path / "labels.json", 0.3, "") == 2
    box = {"label": "bolt", "bounding_box": [0.1, 0.1, 0.4, 0.4], "confidence": 0.75}
    assert json.loads((tmp_path / "labels.json").read_text("utf-8")) == {
        "labels": {"set 1/a": [box], "/x/b.jpg": []}
    }


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ('{"images": ["a.jpg"], "objects": []}\n', "found.jsonl:1: image: it is absent"),
        (found() + found(((1, 2, "x", 4), "bolt", 0.5)), "found.jsonl:2: detections.0.bbox_2d.2: expected"),
        (found() + '{"image": "b', "found.jsonl:2: expected"),
    ],
)
def test_what_is_no_prediction__is_refused_and_nothing_written(tmp_path: Path, lines: str, what: str) -> None:
    (tmp_path / "found.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        write_predictions_for("labelstudio", tmp_path / "found.jsonl", tmp_path / "out.json", 0, "")
    assert what in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["found.jsonl"]


def test_no_prediction_at_all__is_refused(tmp_path: Path) -> None:
    (tmp_path / "found.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="the file holds no predictions"):
        write_predictions_for("labelstudio", tmp_path / "found.jsonl", tmp_path / "out.json", 0.3, "")
    assert not (tmp_path / "out.json").exists()
