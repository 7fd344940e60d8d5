"""Label Studio's JSON export, and the mistakes that its users make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.tool_files import Boxed, approx, choice, percent, read_one, refusal, task

SIZE = (64, 48)
BOX = percent(Boxed("bolt", (16, 12, 32, 24)), SIZE)
IMAGE: dict[str, str | int | bytes] = {"images/a.jpg": 1}


def region(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return BOX | {"type": kind, "value": value | {kind: ["bolt"]}}


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "/data/upload/7/0a1b2c3d-a.jpg", "/data/local-files/?d=set%2Fa.jpg", "s3://bucket/x/a.jpg",
     "https://example.org/x/a.jpg?sig=1", "images/a.jpg", "upload/0a1b2c3d-a.jpg"],
)  # fmt: skip
def test_images__are_found_by_what_the_server_calls_them(tmp_path: Path, name: str) -> None:
    found = read_one(tmp_path, {"project.json": json.dumps([task([BOX], name)]), **IMAGE})
    assert found.boxes == {"images/a.jpg": [("bolt", approx(16, 12, 32, 24))]}
    assert not found.findings


@pytest.mark.parametrize(
    ("own", "box", "kind"),
    [
        (percent(Boxed("bolt", (20, 10, 40, 20)), SIZE, rotation=90), (10, 10, 20, 30), "rotated box"),
        (region("polygonlabels", {"points": [[25, 25], [50, 25], [50, 75]]}), (16, 12, 32, 36), "polygon"),
        (
            region("ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25, "rotation": 0}),
            (16, 12, 48, 36),
            "ellipse",
        ),
    ],
)
def test_shapes__give_their_extent_and_are_told(
    tmp_path: Path, own: dict[str, Any], box: tuple[float, ...], kind: str
) -> None:
    found = read_one(tmp_path, {"p.json": json.dumps([task([own])]), **IMAGE})
    assert found.boxes == {"images/a.jpg": [("bolt", approx(*box))]}
    (told,) = found.findings["derived"]
    assert told.endswith(f"({kind})")


def test_rectangle_and_labels_apart__are_one_box(tmp_path: Path) -> None:
    own = {key: value for key, value in BOX["value"].items() if key != "rectanglelabels"}
    pair = [
        BOX | {"type": "rectangle", "value": own},
        BOX | {"type": "labels", "value": own | {"labels": ["nut"]}},
    ]
    found = read_one(tmp_path, {"p.json": json.dumps([task(pair)]), **IMAGE})
    assert found.boxes == {"images/a.jpg": [("nut", approx(16, 12, 32, 24))]}


def test_image_of_another_resolution__keeps_its_shape_and_its_boxes(tmp_path: Path) -> None:
    own = percent(Boxed("bolt", (160, 120, 320, 240)), (640, 480))
    found = read_one(tmp_path, {"p.json": json.dumps([task([own])]), **IMAGE})
    assert found.boxes == {"images/a.jpg": [("bolt", approx(16, 12, 32, 24))]}
    assert [note.endswith("640×480, used 64×48 of 'images/a.jpg'") for note in found.findings["resized"]] == [
        True
    ]


def test_skipped_and_new_tasks__are_no_negatives(tmp_path: Path) -> None:
    tasks = [
        task([], "a.jpg"),
        task([BOX], "b.jpg", was_cancelled=True),
        task([], "c.jpg") | {"annotations": []},
    ]
    files: dict[str, Any] = {f"images/{name}.jpg": at for at, name in enumerate("abc")}
    found = read_one(tmp_path, {"p.json": json.dumps(tasks), **files})
    assert found.boxes == {"images/a.jpg": []}
    assert [note.rpartition(": ")[2] for note in found.findings["no_annotation"][:2]] == [
        "skipped",
        "nobody annotated it",
    ]


def test_of_several_annotators__the_one_marked_counts(tmp_path: Path) -> None:
    both = task([BOX])
    both["annotations"].append({"result": [], "ground_truth": True})
    assert read_one(tmp_path, {"p.json": json.dumps([both]), **IMAGE}).boxes == {"images/a.jpg": []}


def test_labels_of_several_sets__are_told(tmp_path: Path) -> None:
    other = percent(Boxed("rust", (1, 2, 30, 40)), SIZE) | {"from_name": "damage", "id": "2"}
    found = read_one(tmp_path, {"p.json": json.dumps([task([BOX, other])]), **IMAGE})
    assert [note.endswith("'label', 'damage'") for note in found.findings["label_sets"]] == [True]
    assert [label for label, _ in found.boxes["images/a.jpg"]] == ["bolt", "rust"]


def test_duplicate_tasks__are_two_samples_of_one_image(tmp_path: Path) -> None:
    """Which ``data convert`` and ``data check`` tell; uploads of two names are refused."""
    tasks = [task([BOX], f"/data/upload/1/{number}-a.jpg") for number in ("00000001", "00000002")]
    assert "would both be the image 'images/a.jpg'" in refusal(
        tmp_path, {"p.json": json.dumps(tasks), **IMAGE}
    )


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ([BOX | {"value": BOX["value"] | {"x": 320}}], "expected percent of the image, 0 to 100, got 320"),
        ([BOX | {"value": BOX["value"] | {"x": None}}], "x: expected a valid number, got None"),
        ([BOX | {"value": BOX["value"] | {"rectanglelabels": ["a", "b"]}}], "the region has 2 labels: a, b"),
        (
            [BOX, BOX | {"type": "labels", "from_name": "state", "value": {"labels": ["new"]}}],
            "2 labels: bolt, new",
        ),
        ([BOX | {"value": BOX["value"] | {"rectanglelabels": []}}], "label: expected a label text, got None"),
        ([BOX | {"image_rotation": 90}], "the image was turned by 90° in the editor"),
        (
            [region("brushlabels", {"format": "rle", "rle": [1]})],
            "a region of the type 'brushlabels' is not read",
        ),
        ([region("videorectangle", {"sequence": []})], "a region of the type 'videorectangle' is not read"),
    ],
)
def test_mistakes__are_told_with_their_place(tmp_path: Path, result: list[dict[str, Any]], what: str) -> None:
    said = refusal(tmp_path, {"p.json": json.dumps([task(result)]), **IMAGE})
    assert what in said
    assert "p.json: [0]: region 1" in said


@pytest.mark.parametrize(
    ("tasks", "what"),
    [
        ([task([BOX]) | {"data": {"left": "a.jpg", "right": "b.jpg"}}], "one image in data, got left, right"),
        ([task([BOX]) | {"data": {"text": "hello"}}], "expected one image in data, got none"),
        ([task([BOX]) | {"annotations": [{"result": [BOX]}] * 2}], "the task has 2 annotations"),
        ([task([BOX]), {"data": {"image": "a.jpg"}}], "annotations: it is absent"),
        ([task([BOX], "https://example.org/c.jpg")], "the image 'c.jpg' is absent"),
    ],
)  # fmt: skip
def test_broken_tasks__are_told(tmp_path: Path, tasks: list[Any], what: str) -> None:
    assert what in refusal(tmp_path, {"p.json": json.dumps(tasks), **IMAGE})


def test_flags_of_a_region(tmp_path: Path) -> None:
    from qwendet.data.formats.detect import open_source
    from qwendet.data.formats.records import Record

    read_one(
        tmp_path,
        {"p.json": json.dumps([task([BOX, choice(BOX, "Difficult"), choice(BOX, "crowd")])]), **IMAGE},
    )
    (record,) = [item for item in open_source(tmp_path).items if isinstance(item, Record)]
    assert [(own.difficult, own.crowd) for own in record.turn.objects] == [(True, True)]
