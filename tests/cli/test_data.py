"""qwendet data convert, split, teachers: tables, messages and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.commands import Qwendet

CATEGORIES = [{"id": 1, "name": "dot"}, {"id": 2, "name": "unused"}]


def write_coco(folder: Path, boxes: list[dict[str, Any]], num_images: int = 2) -> Path:
    folder.mkdir()
    images = []
    for number in range(num_images):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 30})
    annotations = [{"id": at, "image_id": 0, "category_id": 1, **box} for at, box in enumerate(boxes)]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


GOOD = {"bbox": [1, 2, 20, 20]}
BAD = [
    {"bbox": [1, 2, -3, 4]},
    {"bbox": [1, 2, 3, 4], "category_id": 0, "image_id": 1},
    {"bbox": [1, 2, 3, 4], "image_id": 7},
    {"bbox": [0, 0, 1e9, 1e9], "image_id": 2},
    {"bbox": [1, 2, float("nan"), 4], "image_id": 3},
]


def test_convert__what_is_repaired_is_told(
    qwendet: Qwendet, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    quirks = [GOOD, GOOD, {"bbox": [5, 5, 0, 3]}, {"bbox": [-0.5, 0, 9, 9]}, {"bbox": [30, 0, 14, 9]}]
    quirks.append({"segmentation": [[3, 3, 9, 3, 9, 9]], "image_id": 1})
    ending = qwendet(
        "data", "convert", write_coco(tmp_path / "coco", quirks), tmp_path / "out", "--to", "yolo"
    )
    assert ending.code == 0
    lines = [line for line in ending.err.splitlines() if not line.startswith("placing images")]
    golden("messages/convert_repaired.txt", "\n".join(lines).replace(str(tmp_path), "DIR") + "\n")
    assert ending.out.splitlines()[-2].split() == ["all", "2", "dot", "5"]
    strict = qwendet("data", "convert", tmp_path / "coco", tmp_path / "strict", "--strict")
    assert strict.code == 2
    assert "Error: boxes without area left out: " in strict.err
    assert not (tmp_path / "strict").exists()


def test_convert__of_many_labels_those_with_most_boxes_are_listed(qwendet: Qwendet, tmp_path: Path) -> None:
    boxes = [{**GOOD, "category_id": 1 + number % 60} for number in range(70)]
    source = write_coco(tmp_path / "coco", boxes)
    content = json.loads((source / "instances.json").read_text(encoding="utf-8"))
    content["categories"] = [{"id": 1 + number, "name": f"label {number:02}"} for number in range(60)]
    (source / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    out = qwendet("data", "convert", source, tmp_path / "out").out
    rows = [line.split() for line in out.splitlines() if line.split()[:1] == ["all"]]
    assert len(rows) == 41
    assert rows[0] == ["all", "2", "label", "00", "2"]
    assert rows[-1] == ["all", "2", "and", "20", "more", "20"]


def test_convert__every_mistake_has_its_place(
    qwendet: Qwendet, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    source = write_coco(tmp_path / "coco", BAD, num_images=5)
    ending = qwendet("data", "convert", source, tmp_path / "out")
    assert (ending.code, ending.out) == (2, "")
    golden("messages/convert_broken.txt", ending.err.replace(str(tmp_path), "DIR"))
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]


def test_convert__skip_bad_ends_with_1(qwendet: Qwendet, tmp_path: Path) -> None:
    source = write_coco(tmp_path / "coco", BAD, num_images=5)
    ending = qwendet("data", "convert", source, tmp_path / "out", "--skip-bad")
    assert ending.code == 1
    assert "Left out 5, all listed in left-out.txt:" in ending.err
    assert len((tmp_path / "out" / "left-out.txt").read_text().splitlines()) == 5
    (line,) = (tmp_path / "out" / "all.jsonl").read_text().splitlines()
    assert json.loads(line)["images"] == ["images/4.png"]


def test_conversations__their_frame_is_told_or_asked_for(qwendet: Qwendet, tmp_path: Path) -> None:
    """Images of 1000 pixels do not tell pixels from 0-1000."""
    records = []
    for number, (size, box) in enumerate((((640, 480), [10, 20, 900, 950]), ((1000, 1000), [1, 2, 30, 40]))):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
        answer = json.dumps([{"bbox_2d": box, "label": "dot"}])
        turns = [{"from": "human", "value": "<image>Find dots"}, {"from": "gpt", "value": answer}]
        records.append({"conversations": turns, "image": f"{number}.png"})
    file = tmp_path / "all.json"
    file.write_text(json.dumps(records))
    told = qwendet("data", "check", file, "--format", "json")
    (result,) = [one for one in json.loads(told.out)["checks"] if "read in this frame" in one["what"]]
    assert result["status"] == "pass"
    assert "0-1000 of the image, which" in result["where"]
    assert "of 2 boxes 1 leave their image as pixels" in result["where"]
    file.write_text(json.dumps(records[1:]))
    for command in (("data", "check", file), ("data", "convert", file, tmp_path / "out")):
        ending = qwendet(*command)
        assert ending.code == 2
        assert "say it: --frame pixels|resized|thousandths|fractions" in ending.err
        assert qwendet(*command, "--frame", "pixels").code == 0
    ending = qwendet("init", tmp_path / "p", "--model", "tiny", "--data", file, "--frame", "thousandths")
    assert ending.code == 0
    (line,) = (tmp_path / "p" / "data" / "all.jsonl").read_text().splitlines()
    assert json.loads(line)["objects"] == [{"bbox_2d": [1, 2, 30, 40], "desc": "dot"}]
    assert "--frame thousandths --val 0.1" in ending.err


def test_convert__names_nothing_raw(qwendet: Qwendet, tmp_path: Path) -> None:
    source = write_coco(tmp_path / "coco", [])
    content = (source / "instances.json").read_text().replace("0.png", "\\u001b[31m.png")
    (source / "instances.json").write_text(content)
    ending = qwendet("data", "convert", source, tmp_path / "out")
    assert ending.code == 2
    assert "\x1b" not in ending.err


def test_convert__unknown_folder(qwendet: Qwendet, tmp_path: Path) -> None:
    ending = qwendet("data", "convert", tmp_path, tmp_path / "out")
    assert ending.code == 2
    assert "no data set found: expected a .jsonl file" in ending.err
    ending = qwendet("data", "convert", tmp_path / "absent", tmp_path / "out", "--from", "coco")
    assert ending.code == 2
    assert "got no such file or folder" in ending.err


def test_split_and_teachers__print_tables(qwendet: Qwendet, tmp_path: Path) -> None:
    boxes = [{**GOOD, "image_id": number} for number in range(20)]
    source = write_coco(tmp_path / "coco", boxes, num_images=20)
    ending = qwendet("data", "split", source, tmp_path / "out", "--val", "0.2", "--test", "0.1")
    assert ending.code == 0
    rows = [line.split() for line in ending.out.splitlines()[-4:-1]]
    assert rows == [["train", "14", "dot", "14"], ["val", "4", "dot", "4"], ["test", "2", "dot", "2"]]
    pool = tmp_path / "out" / "teachers.jsonl"
    ending = qwendet("data", "teachers", tmp_path / "out" / "train.jsonl", pool, "--count", "3")
    assert ending.code == 0
    assert ["dot", "3", "14"] in [line.split() for line in ending.out.splitlines()]
    assert f"Held out: {tmp_path}/out/val.jsonl, {tmp_path}/out/test.jsonl; 0 training images" in ending.err
    assert len(pool.read_text().splitlines()) == 3
    again = qwendet("data", "teachers", tmp_path / "out" / "train.jsonl", pool)
    assert again.code == 2
    assert "there is a file of this name already" in again.err


def test_split__bad_fraction(qwendet: Qwendet, tmp_path: Path) -> None:
    source = write_coco(tmp_path / "coco", [GOOD])
    ending = qwendet("data", "split", source, tmp_path / "out", "--val", "1.5")
    assert ending.code == 2
    assert "expected a fraction from 0 to 1, got 1.5" in ending.err


def test_predictions__for_label_studio(qwendet: Qwendet, tmp_path: Path) -> None:
    found = {"image": "a.jpg", "width": 64, "height": 48, "detections": [], "rejected": 0}
    (tmp_path / "found.jsonl").write_text(json.dumps(found) + "\n", encoding="utf-8")
    out = tmp_path / "tasks.json"
    ending = qwendet("data", "predictions", str(tmp_path / "found.jsonl"), str(out))
    assert (ending.code, ending.err.strip()) == (0, f"1 images → {out}")
    assert json.loads(out.read_text("utf-8"))[0]["data"] == {"image": "/data/local-files/?d=a.jpg"}
    broken = qwendet("data", "predictions", str(out), str(tmp_path / "again.json"))
    assert broken.code == 2
    assert "image: it is absent" in broken.err
