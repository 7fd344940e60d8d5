"""Conversations of other tools: read whatever their layout and frame, told where they say nothing sound."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwendet.checks.config.sample_files import find_data
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.config.suite import run_data_checks
from qwendet.data.formats.box_frames import BoxFrame, FrameEvidence, from_pixels
from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Finding, Record
from qwendet.data.samples import DetectedObject, SampleFile
from qwendet.errors import DataError, Problem

Box = tuple[float, float, float, float]
Size = tuple[int, int]
SIZE = (640, 480)
ASKED = "<image>Locate every bolt."
BOXES = [(10.0, 20.0, 600.0, 470.0), (100.0, 250.0, 420.0, 480.0)]
"""Pixels of the two images of each file; as 0-1000 they leave them."""


def in_frame(box: Box, frame: BoxFrame, size: Size = SIZE, digits: int | None = None) -> list[float]:
    moved = from_pixels(DetectedObject(box, "bolt"), frame, size).bbox_2d
    return [round(value, digits if frame != "fractions" else 6) for value in moved]


def answer(box: Box, frame: BoxFrame = "thousandths") -> str:
    return json.dumps([{"bbox_2d": in_frame(box, frame), "label": "bolt"}])


def said(question: str, reply: str, image: str = "pics/0.png") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "images": [image]}


def tokens(box: Box) -> str:
    x1, y1, x2, y2 = in_frame(box, "thousandths")
    return f"<|object_ref_start|>bolt<|object_ref_end|><|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[at % 2], "value": value} for at, value in enumerate(values)]


def swift(box: Sequence[float], question: str, reply: str, refs: list[str], **more: Any) -> dict[str, Any]:
    return said(question, reply) | {"objects": {"ref": refs, "bbox": [list(box)], **more}}


Layout = Callable[[Box], dict[str, Any]]
PARTS = [{"type": "image_url", "image_url": {"url": "pics/0.png"}}, {"type": "text", "text": "Find bolts"}]
LAYOUTS: dict[str, Layout] = {
    "LLaMA-Factory": lambda box: said(ASKED, answer(box)),
    "LLaMA-Factory, ShareGPT": lambda box: {
        "conversations": turns(ASKED, answer(box)), "images": ["pics/0.png"],
    },
    "LLaMA-Factory, Alpaca": lambda box: {
        "instruction": ASKED, "input": "", "output": answer(box), "images": ["pics/0.png"],
    },
    "LLaVA, Qwen's scripts": lambda box: {
        "id": "0", "image": "pics/0.png", "conversations": turns("<image>\nFind bolts", answer(box)),
    },
    "Qwen's scripts, a list": lambda box: {
        "image": ["pics/0.png"], "conversations": turns("<image>\nFind bolts", answer(box)),
    },
    "OpenAI": lambda box: {
        "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": PARTS},
                     {"role": "assistant", "content": [{"type": "text", "text": answer(box)}]}],
    },
    "OpenAI, a file's URL": lambda box: {
        "messages": [{"role": "user", "content": [{"type": "image", "image": "file://pics/0.png"}]},
                     {"role": "assistant", "content": answer(box)}],
    },
    "without a mark": lambda box: said("Find bolts", answer(box)),
    "box tokens": lambda box: said(ASKED, tokens(box)),
    "a fence and prose": lambda box: said(ASKED, f"Here:\n```json\n{answer(box)}\n```"),
    "thought": lambda box: said(ASKED, f"<think>\n\n</think>\n\n{answer(box)}"),
    "fractions": lambda box: said(ASKED, answer(box, "fractions")),
    "described in the question": lambda box: said(
        "<image>Give the box of what this sentence describes: bolt.", str(in_frame(box, "fractions"))
    ),
    "ms-swift": lambda box: swift(
        box, "<image>Find <ref-object>", '[{"bbox_2d": <bbox>, "label": "<ref-object>"}]', ["bolt"] * 2
    ),
    "ms-swift, label and box": lambda box: swift(box, ASKED, "<ref-object><bbox>", ["bolt"]),
    "ms-swift, label in the question": lambda box: swift(
        box, "<image>Find <ref-object>", "<bbox>", ["bolt"]
    ),
    "ms-swift, 0-1": lambda box: swift(
        in_frame(box, "fractions"), ASKED, "<ref-object><bbox>", ["bolt"], bbox_type="norm1"
    ),
    "ms-swift, before its third version": lambda box: {
        "query": ASKED, "response": answer(box), "images": [{"path": "pics/0.png"}],
    },
}  # fmt: skip


def write(folder: Path, records: list[Any], name: str = "train.jsonl", size: Size = SIZE) -> Path:
    (folder / "pics").mkdir(parents=True, exist_ok=True)
    for number in range(len(records)):
        Image.new("RGB", size, (number % 256, 50, 50)).save(folder / "pics" / f"{number}.png")
    lines = "\n".join(map(json.dumps, records))
    (folder / name).write_text(lines if name.endswith("l") else json.dumps(records), encoding="utf-8")
    return folder


def numbered(record: dict[str, Any], number: int) -> dict[str, Any]:
    return json.loads(json.dumps(record).replace("pics/0.png", f"pics/{number}.png"))  # type: ignore[no-any-return]


def read(path: Path, **how: Any) -> tuple[dict[str, list[Box]], list[Finding], list[Problem]]:
    items = list(open_source(path, **how).items)
    records = [item for item in items if isinstance(item, Record)]
    boxes = {item.turn.image: [f.bbox_2d for f in item.turn.objects] for item in records}
    assert {found.desc for item in records for found in item.turn.objects} <= {"bolt"}
    findings = [item for item in items if isinstance(item, Finding)]
    findings += [finding for item in records for finding in item.findings]
    return boxes, findings, [item for item in items if isinstance(item, Problem)]


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout__is_read(tmp_path: Path, layout: str, name: str) -> None:
    records = [numbered(LAYOUTS[layout](box), number) for number, box in enumerate(BOXES)]
    boxes, _, problems = read(write(tmp_path, records, name))
    assert problems == []
    assert list(boxes) == ["pics/0.png", "pics/1.png"]
    for (found,), wanted in zip(boxes.values(), BOXES, strict=True):
        assert found == pytest.approx(wanted, abs=0.33)  # half a thousandth of 640 pixels


def drawn_boxes(size: Size, count: int = 30) -> list[Box]:
    draw = random.Random(5)
    corners = [(draw.uniform(0, 0.7), draw.uniform(0, 0.7)) for _ in range(count)]
    return [
        (x * size[0], y * size[1], (x + draw.uniform(0.05, 0.3)) * size[0], (y + 0.3) * size[1])
        for x, y in corners
    ]


def tell_frame(images: list[tuple[Size, list[Box]]]) -> tuple[BoxFrame | None, str]:
    evidence = FrameEvidence()
    for size, boxes in images:
        evidence.add(size, boxes, is_new=True)
    return evidence.tell()


@pytest.mark.parametrize("size", [(300, 200), (640, 480), (1920, 1080), (4000, 6000)])
@pytest.mark.parametrize("frame", ["pixels", "thousandths", "fractions"])
def test_tell_frame__from_all_boxes(size: Size, frame: BoxFrame) -> None:
    images = [(size, [tuple(in_frame(box, frame, size))]) for box in drawn_boxes(size)]
    assert tell_frame(images)[0] == frame  # type: ignore[arg-type]


def test_tell_frame__pixels_of_a_resize() -> None:
    """Qwen2.5-VL makes 112×112 of 100×100, and 644×476 of 640×480; of 996×996 it makes 1008×1008."""
    images: Any = [((100, 100), [(5, 5, 111, 112)]), ((640, 480), [(1, 2, 643, 400)])]
    assert tell_frame(images * 5)[0] == "resized"
    assert tell_frame([((996, 996), [(1, 2, 999, 1000)])] * 5)[0] is None


@pytest.mark.parametrize(
    "images", [[((320, 240), [(40, 60, 140, 160)])], [((1000, 1000), [(1, 2, 999, 1000)])] * 50]
)
def test_tell_frame__says_where_it_cannot_know(images: Any) -> None:
    frame, why = tell_frame(images)
    assert frame is None
    assert "0 leave their image as pixels" in why


def test_frame__that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [said(ASKED, answer((40, 60, 140, 160), "pixels"))], size=(320, 240))
    with pytest.raises(DataError) as caught:
        convert_dataset(folder, tmp_path / "out", Conversion())
    (problem,) = caught.value.problems
    assert problem.what.startswith("the frame of the boxes is not clear: of 1 boxes 0 leave")
    assert problem.fix == "say it: --frame pixels|resized|thousandths|fractions"
    convert_dataset(folder, tmp_path / "out", Conversion(frame="thousandths"))
    (sample,) = SampleFile(tmp_path / "out" / "train.jsonl")
    assert sample.student.objects[0].bbox_2d == (12.8, 14.4, 44.8, 38.4)


def test_frame__of_other_formats_is_none(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"images": ["a.png"], "objects": []}')
    with pytest.raises(DataError, match="--frame is about the boxes of conversations, and this is jsonl"):
        open_source(tmp_path, frame="pixels")


def test_turns_without_boxes__are_counted_and_left_out(tmp_path: Path) -> None:
    more = turns(ASKED, answer(BOXES[0]), "What colour?", "Grey, 3 of 4.")
    caption = said("<image>Describe it.", "Two bolts.", "pics/1.png")
    records = [{"conversations": more, "image": "pics/0.png"}, caption]
    boxes, findings, _ = read(write(tmp_path, records))
    assert list(boxes) == ["pics/0.png"]
    assert [found.where for found in findings if found.kind == "no_boxes"] == [f"{tmp_path}/train.jsonl: 2"]


def test_questions_about_one_image__are_one_sample(tmp_path: Path) -> None:
    records = [said(ASKED, answer(BOXES[0])), said("<image>Any more?", answer(BOXES[1])),
               said(ASKED, "```json\n[]\n```", "pics/2.png")]  # fmt: skip
    boxes, _, _ = read(write(tmp_path, records))
    assert {image: len(found) for image, found in boxes.items()} == {"pics/0.png": 2, "pics/2.png": 0}


def test_image_in_each_turn__has_boxes_of_its_own(tmp_path: Path) -> None:
    more = turns(ASKED, answer(BOXES[0]), ASKED, answer(BOXES[1]))
    folder = write(tmp_path, [{"conversations": more, "images": ["pics/0.png", "pics/1.png"]}, {}])
    boxes, _, _ = read(folder)
    assert {image: round(found[0][0]) for image, found in boxes.items()} == {
        "pics/0.png": 10,
        "pics/1.png": 100,
    }


def test_questions_for_one_label__are_told(tmp_path: Path) -> None:
    nut = json.dumps([{"bbox_2d": [1, 2, 900, 900], "label": "nut"}])
    records = [said(ASKED, answer(BOXES[0])), said("<image>Find each nut", nut, "pics/1.png"),
               said("<image>Find all", answer(BOXES[1]), "pics/2.png")]  # fmt: skip
    report = convert_dataset(write(tmp_path / "in", records), tmp_path / "out", Conversion())
    assert [note.rpartition(": ")[2] for note in report.findings["asked_of_some"]] == [
        "'pics/0.png' is asked about 'bolt' alone", "'pics/1.png' is asked about 'nut' alone",
    ]  # fmt: skip


SWAPPED: Box = (9, 9, 2, 2)
BROKEN: dict[str, tuple[Any, str, str]] = {
    "two images, one set of boxes": (
        said("<image><image>Find bolts", answer(BOXES[0])) | {"images": ["pics/0.png", "pics/1.png"]},
        "a set of boxes for 2 images",
        "message 2",
    ),
    "a mark too many": (said("<image><image>Find", answer(BOXES[0])), "1 images and 2 marks <image>", ":1"),
    "cut": (said(ASKED, '[{"bbox_2d": [1, 2, 3'), "1 boxes of the answer cannot be read", "message 2"),
    "corners swapped": (said(ASKED, answer(SWAPPED)), "1 boxes of the answer cannot be read", "message 2"),
    "no label": (said("<image>Where?", "[1, 2, 3, 4]"), "label: expected a label text", "message 2"),
    "absent": (said(ASKED, answer(BOXES[0]), "pics/x.png"), "the image 'pics/x.png' is absent", ":1"),
    "another machine": (said(ASKED, answer(BOXES[0]), "/x/0.png"), "path '/x/0.png' is absolute", ":1"),
    "leads out": (said(ASKED, answer(BOXES[0]), "../0.png"), "leaves the data set's folder", ":1"),
    "in the file": (said(ASKED, answer(BOXES[0]), "data:image/png;base64,AA"), "is in the file itself", ":1"),
    "ms-swift: a mark too many": (
        swift(BOXES[0], ASKED, "<bbox><bbox>", []),
        "2 marks <bbox> and 1 values in objects.bbox",
        ":1",
    ),
    "ms-swift: boxes without marks": (
        swift(BOXES[0], ASKED, "[]", []),
        "0 marks <bbox> and 1 values in objects.bbox",
        ":1",
    ),
    "ms-swift: labels for other marks": (
        swift(BOXES[0], ASKED, "<ref-object><bbox>", ["a", "b"]),
        "1 marks <ref-object> and 2 values in objects.ref",
        ":1",
    ),
    "another kind": ({"text": "x"}, "expected an object with messages, conversations, or", ":2"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_mistake__is_told_and_left_out_alone(tmp_path: Path, kind: str) -> None:
    record, what, where = BROKEN[kind]
    sound = said(ASKED, answer(BOXES[1]), "pics/2.png")
    records = [sound, record, sound] if where == ":2" else [record, sound, sound]
    folder = write(tmp_path / "in", records)
    with pytest.raises(DataError) as caught:
        convert_dataset(folder, tmp_path / "out", Conversion())
    (problem,) = caught.value.problems
    assert what in problem.what
    assert where in problem.where
    assert problem.fix
    report = convert_dataset(folder, tmp_path / "out", Conversion(skip_bad=True))
    assert (report.images, len(report.left_out)) == ({"train": 1}, 1)


@pytest.mark.parametrize("line", [b'{"messages": [', b"\xff\xfe{}", b"[" * 100_000])
def test_broken_line__is_told_and_left_out_alone(tmp_path: Path, line: bytes) -> None:
    folder = write(tmp_path / "in", [said(ASKED, answer(BOXES[0]))])
    with (folder / "train.jsonl").open("ab") as file:
        file.write(b"\n" + line + b"\n")
    with pytest.raises(DataError, match=r"train\.jsonl:2: expected an object with messages"):
        convert_dataset(folder, tmp_path / "out", Conversion())
    report = convert_dataset(folder, tmp_path / "out", Conversion(skip_bad=True))
    assert (report.images, len(report.left_out)) == ({"train": 1}, 1)


def test_image_in_training_and_validation__is_found(tmp_path: Path) -> None:
    write(tmp_path, [said(ASKED, answer(BOXES[0])), said(ASKED, answer(BOXES[1]), "pics/1.png")])
    write(tmp_path, [said(ASKED, answer(BOXES[0]))], "val.jsonl")
    how = Thoroughness("header", workers=1)
    results, _ = run_data_checks(find_data([tmp_path]), None, how)
    (overlap,) = [result for result in results if result.id == "config.data.train_val_overlap"]
    assert (overlap.status, "pics/0.png" in overlap.what) == ("fail", True)


def test_captions_alone__are_no_data_set(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [said("<image>Describe it.", "Two bolts.")])
    with pytest.raises(DataError, match="no answer holds boxes"):
        convert_dataset(folder, tmp_path / "out", Conversion())


def test_two_files_of_a_split__are_told(tmp_path: Path) -> None:
    write(tmp_path, [said(ASKED, answer(BOXES[0]))], "train_a.json")
    write(tmp_path, [said(ASKED, answer(BOXES[0]))], "train_b.json")
    with pytest.raises(DataError, match=r"one file of conversations a split, got train_a\.json and train_b"):
        open_source(tmp_path)


def test_conversations_as_samples__are_named(tmp_path: Path) -> None:
    write(tmp_path, [said(ASKED, answer(BOXES[0]))])
    with pytest.raises(DataError, match="this is a conversation, as other tools train on, and no sample"):
        list(SampleFile(tmp_path / "train.jsonl"))


def test_flags__that_conversations_cannot_hold_are_told(tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    crowd = {"bbox_2d": [1, 2, 30, 40], "desc": "bolt", "crowd": True}
    kept = {"bbox_2d": [5, 6, 70, 80], "desc": "<bbox> & <image>"}
    (tmp_path / "train.jsonl").write_text(json.dumps({"images": ["a.png"], "objects": [crowd, kept]}))
    report = convert_dataset(tmp_path / "train.jsonl", tmp_path / "out", Conversion(target="swift"))
    assert len(report.findings["flags_lost"]) == 1
    record = json.loads((tmp_path / "out" / "train.jsonl").read_text())
    assert record["objects"] == {"ref": [], "bbox": [[5, 6, 70, 80]], "bbox_type": "real"}
    assert record["messages"][1]["content"].count("<bbox>") == 1


def test_llamafactory__is_told_how_to_read_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [LAYOUTS["ms-swift"](BOXES[0])])
    report = convert_dataset(folder, tmp_path / "out", Conversion(target="llamafactory"))
    assert [file.name for file in report.files] == ["train.json"]
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert info["train"]["file_name"] == "train.json"
    (record,) = json.loads((tmp_path / "out" / "train.json").read_text())
    assert (tmp_path / "out" / record["images"][0]).is_file()
    assert record["messages"] == [
        {"role": "user", "content": "<image>Locate every bolt. Output bbox_2d and label of each in JSON."},
        {"role": "assistant", "content": '[{"bbox_2d": [16, 42, 938, 979], "label": "bolt"}]'},
    ]


def test_image_of_several_conversations__is_one_sample_when_the_last_is_read(tmp_path: Path) -> None:
    pairs = ((BOXES[0], 0), (BOXES[1], 1), (BOXES[1], 0))
    first, other, last = (numbered(said(ASKED, answer(box)), number) for box, number in pairs)
    boxes, _, problems = read(write(tmp_path, [first, other, last]))
    assert problems == []
    assert {image: len(found) for image, found in boxes.items()} == {"pics/1.png": 1, "pics/0.png": 2}
    assert list(boxes) == ["pics/1.png", "pics/0.png"]


@pytest.mark.slow
def test_memory__of_a_file_of_conversations(tmp_path: Path) -> None:
    """Between the passes only path, size and count of an image stay: a kilobyte, where boxes took six."""
    import tracemalloc

    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        boxes = [{"bbox_2d": [10 * at, 20, 10 * at + 9, 990], "label": "bolt"} for at in range(30)]
        record = numbered(said(f"{'long ' * 100}find every bolt", json.dumps(boxes)), 0)
        write(folder, [record])
        lines = [json.dumps(record).replace("pics/0.png", f"pics/{at}.png") for at in range(count)]
        (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        for at in range(1, count):
            (folder / f"pics/{at}.png").hardlink_to(folder / "pics/0.png")
        tracemalloc.start()
        assert sum(isinstance(item, Record) for item in open_source(folder).items) == count
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(400) - peak(100) < 300 * 1500
