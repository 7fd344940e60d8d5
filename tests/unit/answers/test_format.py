"""Answers: the training format to the letter, and what models really write, box by box."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from qwendet.answers.format import ParsedObject, format_answer, parse_answer
from qwendet.data.samples import DetectedObject

Boxes = list[tuple[float, float, float, float]]

A, B, C = (1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12)


def read(text: str) -> tuple[Boxes, list[str], int]:
    answer = parse_answer(text)
    return [item.bbox_2d for item in answer.objects], [item.desc for item in answer.objects], answer.rejected


def test_format_answer__is_qwens_grounding_format_sorted_by_top_then_left() -> None:
    objects = [
        DetectedObject((0.4, 20.2, 50.6, 60), "low"),
        DetectedObject((9, 5, 12, 8), "right"),
        DetectedObject((2, 5.4, 39.6, 8), 'x: le"ft 圆'),
    ]
    assert format_answer(objects) == (
        '[{"bbox_2d": [2, 5, 40, 8], "label": "x: le\\"ft 圆"}, '
        '{"bbox_2d": [9, 5, 12, 8], "label": "right"}, '
        '{"bbox_2d": [0, 20, 51, 60], "label": "low"}]'
    )


def test_format_answer__no_objects_is_an_empty_list() -> None:
    assert format_answer([]) == "[]"


@pytest.mark.parametrize(
    ("box", "written"),
    [
        ((10.1, 20.2, 10.3, 30), [10, 20, 11, 30]),
        ((10, 20.2, 15, 20.4), [10, 20, 15, 21]),
        ((0.1, 0.1, 0.2, 0.2), [0, 0, 1, 1]),
    ],
)
def test_format_answer__rounding_leaves_every_box_an_area(
    box: tuple[float, float, float, float], written: list[int]
) -> None:
    assert json.loads(format_answer([DetectedObject(box, "dot")])) == [{"bbox_2d": written, "label": "dot"}]


def test_parse_answer__reads_every_real_response(shared: Path) -> None:
    lines = (shared / "data" / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 19
    for record in map(json.loads, lines):
        boxes, labels, rejected = read(record["text"])
        expected = [(*item["bbox_2d"], item["label"]) for item in record["expected"]]
        unjudged = [item["label"] is None for item in record["expected"]]
        found = [
            (*box, None if skip else label) for box, label, skip in zip(boxes, labels, unjudged, strict=True)
        ]
        assert (record["id"], found, rejected) == (record["id"], expected, record["rejected"])


@pytest.mark.parametrize(
    ("case", "boxes", "labels"),
    [
        ("boxes_in_one_token_3", [(10, 20, 60, 80), (20, 40, 70, 100), (30, 60, 80, 120)], ["bolt"] * 3),
        (
            "four_scores",
            [(10, 20, 30, 40), (50, 60, 70, 80), (90, 20, 130, 40), (200, 60, 240, 90)],
            ["cat", "dog", "cow", "hen"],
        ),
        ("ref_token_in_json", [(90, 160, 135, 212)], ["bolt"]),
        ("thought_gemma4", [(10, 20, 110, 220)], ["bolt"]),
        ("thought_seed", [(10, 20, 110, 220)], ["bolt"]),
    ],
)
def test_parse_answer__reads_what_people_reported(
    shared: Path, case: str, boxes: Boxes, labels: list[str]
) -> None:
    text = (shared / "cases" / f"answer_{case}" / "input.txt").read_text(encoding="utf-8")
    assert read(text) == (boxes, labels, 0)


# Two boxes, A and B, and their labels, in the forms that models have been seen to use.
WRITINGS = {
    "plain": ('[{"bbox_2d": [1,2,3,4], "label": "a"}, {"bbox_2d": [5,6,7,8], "label": "b"}]', ["a", "b"]),
    "no list": ('{"bbox": [1,2,3,4], "label": "a"}\n{"bbox": [5,6,7,8], "label": "b"}', ["a", "b"]),
    "commas": ('[{"bbox": [1,2,3,4], "label": "a",}, {"box": [5,6,7,8,], "label": "b",},]', ["a", "b"]),
    "no comma": ('[{"box": [1,2,3,4] "label": "a"} {"box": [5 6 7 8]\n"label": "b"\n}]', ["a", "b"]),
    "quotes": ("[{'bbox_2d': (1, 2, 3, 4), 'label': 'a'}, {bbox_2d: [5,6,7,8], label: b}]", ["a", "b"]),
    "wrong bracket": ('[{"box": [1,2,3,4), "label": "a"], {"box": [5,6,7,8}]', ["a", ""]),
    "stray": ('[{{"box": [1,2,3,4]], "label": "a"}}, }{"box": [5,6,7,8], "label": "b"', ["a", "b"]),
    "lost": ('[{"box": [1,2,3,4, "label": "a"}, {"box": 5, 6, 7, 8], "label": "b"}]', ["a", "b"]),
    "no braces": ('["box": [1,2,3,4], "label": "a", "box": [5,6,7,8], "label": "b"]', ["a", "b"]),
    "keys repeat": ('{"box": [1,2,3,4], "label": "a", "box": [5,6,7,8], "label": "b"}', ["a", "b"]),
    "name between": ('{"box": [1,2,3,4], "label": "a", "box": [5,6,7,8]}', ["a", "a"]),
    "names first": ('{"name": "a", "box": [1,2,3,4], "name": "b", "box": [5,6,7,8]}', ["a", "b"]),
    "escaped twice": ('"[{\\"box\\": [1,2,3,4], \\"label\\": \\"a\\"}, [5,6,7,8]]"', ["a", ""]),
    "strings": ('{"bbox_2d": "1, 2, 3, 4", "label": "a"} {"bbox": ["5", "6", "7", "8"]}', ["a", ""]),
    "corners": ('{"coordinates": [[1,2],[3,4]], "label": "a"} {"box": [[5,6],[7,8]]}', ["a", ""]),
    "one name": ('{"label": "c", "bbox_2d": [[1,2,3,4], [5,6,7,8]]}', ["c", "c"]),
    "names as keys": ('{"red car": [1,2,3,4], "dog": [[5,6,7,8]]}', ["red car", "dog"]),
    "outer name": ('{"dog": [{"bbox_2d": [1,2,3,4]}, {"bbox_2d": [5,6,7,8]}]}', ["dog", "dog"]),
    "InternVL": ("car[[1, 2, 3, 4], [5, 6, 7, 8]]", ["car", "car"]),
    "prose": ("1. **Red car**: [1,2,3,4]\nThe pen is at [5,6,7,8].", ["Red car", ""]),
    "Qwen-VL": ("<ref>a</ref><box>(1,2),(3,4)</box><box>5 6 7 8</box>", ["a", "a"]),
    "Qwen2-VL": (
        "<|object_ref_start|>a<|object_ref_end|>在<|box_start|>[1,2,3,4],[5,6,7,8]<|box_end|><|im_end|>",
        ["a", "a"],
    ),
    "no box tokens": ("击掌(1,2),(3,4)\n击掌(5, 6), (7, 8)", ["击掌", "击掌"]),
    "QwenVL HTML": ('<p data-bbox="1 2 3 4">x</p><img data-bbox="5 6 7 8"/>', ["", ""]),
    "fences": ('```json\n[{"bbox_2d": [1,2,3,4]}]\n```\nand ```[[5,6,7,8]]```', ["", ""]),
    "thinking": ("<think>[9,9,10,10]?</think><answer>[[1,2,3,4],[5,6,7,8]]</answer>", ["", ""]),
    "key without end quote": (
        '[{"bbox_2d: [1,2,3,4], "label": "a"}, {"box [5,6,7,8], "label: "b"}]',
        ["a", "b"],
    ),
    "key without colon": ('[{"bbox_2d" [1,2,3,4], "label" "a"}, {box [5,6,7,8], "label": "b"}]', ["a", "b"]),
    "key with stray marks": ('[{"bbox_2d}: [1,2,3,4], "label": "a"}, {"box"[ [5,6,7,8]}]', ["a", ""]),
    "key without value": (
        '[{"bbox_2d": ,1,2,3,4], "label": "a"}, {"box": [5,6[7,8], "label": "b"}]',
        ["a", "b"],
    ),
    "equals": ('[{"bbox_2d"=[1,2,3,4], "label"="a"}, {"box" = [5,6,7,8], "label" = "b"}]', ["a", "b"]),
    "typographic": (
        "[{“bbox_2d”: [1，2，3，4]， “label”： “a”}, {“box”: [5, 6, 7, 8], “label”: “b”}]",
        ["a", "b"],
    ),
    "lists side by side": ('{"labels": ["a", "b"], "bboxes": [[1,2,3,4], [5,6,7,8]]}', ["a", "b"]),
    "lists, names last": ('{"bboxes": [[1,2,3,4], [5,6,7,8]], "labels": ["a", "b"]}', ["a", "b"]),
    "stray marks in tokens": ("<ref>a</ref><box>(1,2),:(3\\4)</box><box>(5,6),),(7,8)<box_end>", ["a", "a"]),
    "blanks in tokens": (
        "<| object_ref_start |>a<| object_ref_end |><| box_start |>(1,2), (3,4)<| box_end |>"
        "<box>5 6 7 8</box>",
        ["a", "a"],
    ),
    "name before a token": ("red car<box>[[1,2,3,4]]</box>圆<box>(5,6),(7,8)</box>", ["red car", "圆"]),
    "pairs as a value": ('{"label": "a", "bbox": (1, 2), (3, 4)} {"result": [[5, 6], [7, 8]]}', ["a", ""]),
    "Rex-Omni": (
        "<|object_ref_start|>a<|object_ref_end|><|box_start|><1><2><3><4>,<5><6><7><8><|box_end|>",
        ["a", "a"],
    ),
    "full width": ("［｛“box”：【1，2，3，4】，“label”：“猫”｝］\n圆：（5，6），（7，8）", ["猫", "圆"]),
    "names of many words": (
        "The four cars parked here: [1,2,3,4]\nThe four cars parked there： [5,6,7,8]",
        ["The four cars parked here", "The four cars parked there"],
    ),
    "names apart": ("- **red car** [1,2,3,4], and the big dog's bone is near [5,6,7,8]", ["red car", ""]),
    "names on other lines": ("Here they are:\n[1,2,3,4]\n<p>car[[5,6,7,8]]</p>", ["", "car"]),
    "names after names": ("Object 1: red car: [1,2,3,4]\n圆： [5,6,7,8]", ["red car", "圆"]),
    "comments": (
        '[  // the dog\'s [9, 9, 10, 10]\n{"box": [1, 2, // left\n3, 4], "label": "a"}, # two\n[5, 6, 7, 8]]',
        ["a", ""],
    ),
    "line breaks escaped twice": (
        r"```json\n[\n\t{\"box\": [\n1,\n2,\n3,\n4\n], \"label\": \"a\"\n},\n\t[5, 6, 7, 8]]",
        ["a", ""],
    ),
    "labels escaped twice": (
        r'"[{\"box\": [1, 2, 3, 4], \"label\": \"\\u5706 \\\"x\\\"\"}, {\"box\": [5, 6, 7, 8]}]"',
        ['圆 "x"', ""],
    ),
    "Chinese keys": ('{"物体": "猫", "坐标": [1, 2, 3, 4]} {"目标框": [[5, 6], [7, 8]]}', ["猫", ""]),
    "semicolons": ("a[[1,2,3,4;005,006,007,008]]", ["a", "a"]),
    "pairs of a key without their list": (
        '{"box": [1,2],[3,4], "label": "a"} {"box": [[5,6],[7,8]]}',
        ["a", ""],
    ),
    "texts in a list": ('["[1, 2, 3, 4]", "<box>(5,6),(7,8)</box>"]', ["", ""]),
    "sentences above their boxes": (
        "I see some of these in it:\nbbox: [1, 2, 3, 4]\ncolour: red\nbbox: [5, 6, 7, 8]",
        ["", ""],
    ),
    "Chinese sentences": ("它的坐标是[1,2,3,4]，边界框为[5,6,7,8]", ["", ""]),
    "Chinese list": ("猫：[1,2,3,4]；黑狗：[5,6,7,8]", ["猫", "黑狗"]),
    "names and marks": ("**Cat** (left): [1,2,3,4] and dog: [5,6,7,8]", ["Cat (left)", "dog"]),
    "names and scores": (
        '{"boxes": [[1,2,3,4], [5,6,7,8]], "scores": [0.1,0.2,0.3,0.4], "labels": ["a", "b"]}',
        ["a", "b"],
    ),
    "digits as names": ('{"boxes": [[1,2,3,4], [5,6,7,8]], "labels": ["1", "7"]}', ["1", "7"]),
    "key and label without a colon": (
        '[{"bbox_2d"" [1,2,3,4], "label"": "a"}, {"bbox_2d": [5,6,7,8], "label" "[b"}]',
        ["a", "[b"],
    ),
    "brace in a key": (
        '[{"bbox_2d"{: [1,2,3,4], "label": "a"}, {"bbox_2d": }5,6,7,8], "label": "b"}]',
        ["a", "b"],
    ),
    "corners in one token": (
        "<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4), (5,6),(7,8)<|box_end|>",
        ["a", "a"],
    ),
    "a word between boxes of a token": (
        "<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4) and (5,6),(7,8)<|box_end|>",
        ["a", "a"],
    ),
    "half of a label's token": (
        '[{"bbox_2d": [1,2,3,4], "label": "a<|object_ref_end|>"},'
        ' {"bbox_2d": [5,6,7,8], "label": "<|object_ref_start|> b"}]',
        ["a", "b"],
    ),
    "tokens in JSON": (
        '[{"bbox_2d": <|box_start|>(1,2),(3,4)<|box_end|>,'
        ' "label": "<|object_ref_start|>a<|object_ref_end|>"},'
        '{"label": <|object_ref_start|>b<|object_ref_end|>,'
        ' "bbox_2d": "<|box_start|>(5,6),(7,8)<|box_end|>"}]',
        ["a", "b"],
    ),
    "prose before an answer": (
        "I see [9,9,10,10]. <answer>[1,2,3,4]</answer> <answer>[5,6,7,8]</answer>",
        ["", ""],
    ),
    "fence before an answer": (
        "```\n[9,9,10,10]\n``` <answer>[1,2,3,4]</answer> <answer>[5,6,7,8]</answer>",
        ["", ""],
    ),
    "no headings": ("Here are the boxes:\n[1,2,3,4]\nFor example:\n[5,6,7,8]", ["", ""]),
    "semicolons beside names": ('{"boxes": [[1,2,3,4;5,6,7,8]], "labels": ["a","b"]}', ["a", "b"]),
    "no bracket before a brace": (
        '[{"label": "a", "box": [1,2,3,4, {"label": "b", "box": [5,6,7,8]}]',
        ["a", "b"],
    ),
    "box token without an end": ("<box>1,2,3,4<box>5,6,7,8</box>", ["", ""]),
    "stray brace in a list": ("[[1,2,3,4]}, [5,6,7,8]]", ["", ""]),
    "template": ('[{"bbox_2d": [x1, y1, x2, y2]}]\nassistant\n[[1,2,3,4],[5,6,7,8]]', ["", ""]),
}


@pytest.mark.parametrize(("text", "labels"), WRITINGS.values(), ids=WRITINGS)
def test_parse_answer__two_boxes_however_they_are_written(text: str, labels: list[str]) -> None:
    assert read(text) == ([A, B], labels, 0)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"bbox_2d": [1, [2], 3, 4]}', ""),
        ('{"bbox_2d": [1, [2, 3, 4]]}', ""),
        ('{"bbox_2d": [1, [], 2, 3, 4]}', ""),
        ('{"bbox_2d": [1, 2, 3, 4, [5]]}', ""),
        ('{"bbox_2d": [1, 2, 3, 4], "color": [0, 10, 20, 30], "position": [5, 6, 7, 8]}', ""),
        ('{"bbox_2d": [1, 2, | 3, 4]}', ""),
        ('{"bbox_2d": [1, 2, {3, 4]}', ""),
        ('{"label": <ref> a </ref>, "bbox_2d": [1, 2, 3, 4]}', "a"),
        ('{"bbox_2d": <box>(1,2),(3,4)</box>, "name": <ref>a</ref>, "note": "b"}', "a"),
        ('{"objects": ["label": "a", "bbox_2d": [1, 2, 3, 4]]}', "a"),
        ('{"objects": ["bbox_2d": [1, 2, 3, 4], "label": "a"], "label": "b"}', "a"),
        ('{"name": "label", "bbox_2d": [1, 2, 3, 4]}', "label"),
        (
            '{"label": "[{\\"bbox_2d\\": [5, 6, 7, 8]}]", "bbox_2d": [1, 2, 3, 4]}',
            '[{"bbox_2d": [5, 6, 7, 8]}]',
        ),
    ],
)
def test_parse_answer__one_box_whatever_is_stray(text: str, label: str) -> None:
    assert read(text) == ([A], [label], 0)


@pytest.mark.parametrize(
    ("text", "boxes", "rejected"),
    [
        ("<box>1,2,3,4</box><box></box>", [A], 1),
        ('{"bbox_2d": [1, [5, 6, 7, 8]]}', [B], 0),
        ('{"bbox_2d": [[1, 2, 3], [5, 6, 7, 8]]}', [B], 1),
        ('[{"bbox_2d": [1, 2<|im_end|>, 3, 4]}]', [], 1),
        ('{"label": "a", "bbox_2d": [1, 2, None, 4]}', [], 1),
        ('{"label": "a", "bbox_2d": [1, 2, +null, 4]}', [], 1),
        ("It is [16, 9", [], 1),
        ("It is [16:9, 4", [], 0),
        ('{"points": [[1, 2], [3, 4]], "label": "a', [], 0),
        ('{"top_left": [1, 2], "bottom_right": [3', [], 1),
        ('{"dog": [5, 6, 7, 8], "cat": [1, 2', [B], 1),
        ('{"bbox_2d": [5, 6, 7, 8], "scores": [1, 2, 3, 4', [B], 0),
        ("[[5, 6, 7, 8], [1, 2, 3, 4 and so on", [B], 1),
        ("[5, 6, 7, 8], <box>(1, 2), (3, x)</box>", [B], 1),
        ('{"bbox_2d": [[1, 2], [3, 4], [5, 6], [7, 8', [], 1),
    ],
)
def test_parse_answer__what_is_no_box_counts_where_one_was_meant(
    text: str, boxes: Boxes, rejected: int
) -> None:
    found, _, count = read(text)
    assert (found, count) == (boxes, rejected)


def test_parse_answer__box_tokens_inside_json_of_a_fine_tune() -> None:
    text = (
        '[\n {"bbox_2d": {"language": "en", "bbox": <|box_start|>(1,2),(3,4)<|box_end|>, "label": "<ref>"}\n]'
    )
    assert read(text) == ([A], ["<ref>"], 0)


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ('"24" monitor"', '24" monitor'),
        ("'man's hat'", "man's hat"),
        ('"\\u51fb\\u638c \\ud83d\\ude00"', "击掌 😀"),
        ('"a\\\\ \\/ \\" \\d"', 'a\\ / " \\d'),
        ('"[9, 9, 10, 10]}]"', "[9, 9, 10, 10]}]"),
        ('"</think> ``` <box>"', "</think> ``` <box>"),
        ("red circle", "red circle"),
        ("null", ""),
        ('{"zh": "圆", "en": "circle"}', "圆"),
        ('"lost quote}, ', "lost quote"),
    ],
)
def test_parse_answer__labels(written: str, label: str) -> None:
    assert read('[{"bbox_2d": [1, 2, 3, 4], "label": ' + written + "\n}]") == ([A], [label], 0)


def test_parse_answer__label_keys_by_rank_not_by_order() -> None:
    text = '{"sub_label": "x", "text": "y", "bbox_2d": [1, 2, 3, 4], "label": "z"}'
    assert read(text) == ([A], ["z"], 0)
    assert read('{"bbox_2d": [1, 2, 3, 4], "color": "red"}') == ([A], [""], 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There are none.",
        "[]",
        '{"bbox_2d": null}, {"bbox_2d": []}',
        "[{'Position': [x1, y1, x2, y2], 'Confidence': number}, ...]",
        '{"bbox_2d": ["x1", "y1", "x2", "y2"], "label": "<label>"}, {"bbox_2d": [<x1>, <y1>, <x2>, <y2>]}',
        "<box>(x1,y1),(x2,y2)</box>",
        '[{"point_2d": [100, 200], "label": "a"}, {"points": [[1, 2, 3, 4]]}, {"point_2d": [1, 2',
        '{"bbox_3d": [2.8, 0.5, 6.2, 4.4, 1.7, 1.8, 0.7, 0.4, 0.7]}',
        '{"bbox_3d": {"center": [1, 2, 3], "quaternion": [1, 2, 3, 4]}}',
        "<|quad_start|>(1,2),(3,4),(5,6),(7,8)<|quad_end|> and (1,2)",
        '{"Next Action": "left_click", "Box ID": 6, "num_boxes": 3, "size": [640, 480]}',
        '{"reason": "I see [1, 2, 3, 4] here", "text": "1, 2, 3, 4"}',
        "The cups are at (1, 2) and (3, 4).",
        "(1, 2), (3, 4), (5, 6)",
        "The points are (1, 2), (3, 4), and (5, 6).",
        "Points: (1, 2), (3, 4)",
        "左上角(1,2)，右下角坐标为(3,4)；(5,6)到(7,8)",
        "draw(image, (9, 9), (10, 10), (0, 255, 0), 2)",
        '{"scores": [1, 2, 3, 4], "color": [1, 2, 3, 4], "power_points": [[1, 2, 3, 4]], "num_boxes": 3}',
        "crop = image[2:4, 1:3]",
        "text<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>",
        "| year | 2019 | 2020 | 2021 | 2022 |\n|---|---|---|---|---|\n| sales | 1 | 2 | 3 | 4 |",
        "| what | x | y | width | height |\n|---|---|---|---|---|\n| a | 1 | 2 | 3 | 4 |",
        '["+1 555 668 098", "12 34 56 78"]',
        "(4 + 2)(4 - 2) = (6)(2)",
        "1,2,3,4,5\n6,7,8,9,10",
        "At 3, 4 of 5, 6 cats.\n1,2",
        '<points x1="1" y1="2" x2="3" y2="4" alt="a">a</points>',
        '<rect x="1" y="2" width="3" height="4"/>',
        '{"eyes": [[1, 2], [3, 4]], "waypoints": [[1, 2], [3, 4]], "x": [1, 2], "box_count": "1, 2"}',
        '[{"x": 1, "y": 2}, {"x": 3, "y": 4}], [[1, 2], [3, 4]]',
        '{"x1": 1, "y1": 2, "x2": 3, "y2": 4, "label": "a"}',
        "<think>It is at [1, 2, 3, 4], no, a shadow.</think>\nThere is none.",
    ],
)
def test_parse_answer__no_box_and_no_failed_one(text: str) -> None:
    assert read(text) == ([], [], 0)


@pytest.mark.parametrize(
    ("text", "rejected"),
    [
        ('{"bbox_2d": [960, 738, 45, 19]}', 1),
        ('{"bbox_2d": [3, 2, 3, 4]}, {"bbox_2d": [1, 4, 3, 4]}', 2),
        ('{"bbox_2d": [NaN, 2, 3, 4]}, {"bbox_2d": [1, 2, Infinity, 4]}, {"bbox_2d": [1, 2, 1e400, 4]}', 3),
        ('{"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, 3, 4, 5]}, {"bbox_2d": [1, 2, null, 4]}', 3),
        ('{"bbox_2d": [[1,2],[3,2],[3,4],[1,4]]}', 1),
        ('{"bbox_2d": {"language": "en", "text": "<ref-object>"}, "label": "<ref-object>"}', 1),
        ('{"bbox": {"x1": 1, "y1": 2, "x2": 3}, "label": "a"}', 1),
        ('{"bbox": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}, "label": "a"}', 1),
        ('{"bbox": {"x": 1, "y": 2, "width": 3, "height": 4}, "label": "a"}', 1),
        ('{"bbox_2d": [{"x": 1, "y": 2}], "label": "a"}', 1),
        ('{"bbox_2d": [{"x": 1, "y": 2}, {"x": 3, "y": 2}, {"x": 3, "y": 4}], "label": "a"}', 1),
        ('{"box": {"vertices": [{"x": 1, "y": 2}, {"x": 3, "y": 4}]}, "label": "a"}', 1),
        ('{"box": {"top_left": [1, 2]}, "label": "a"}', 1),
        ('{"box": {"width": 3, "height": 4}}, {"box": {"size": {"width": 3, "height": 4}}}', 2),
        ('{"box": [{"x": 1, "y": 2, "z": 3}, {"x": 3, "y": 4, "z": 5}]}', 1),
        ("<|box_start|><1><2><3><4><5><6><7><8><|box_end|>", 1),
        ("<|box_start|><1><2><|box_end|>", 1),
        ('{"box": (1, 2), (3, 4), (5, 6)}', 1),
        ("[245, [234, 543, 542, 244]]", 1),
        ("<|box_start|>", 1),
        ("<|box_start|><|box_end|>", 1),
        ("<|box_start|>(246,113)<|box_end|>", 1),
        ("<|box_start|>(501,10), (995987)<|box_end|>", 1),
        ("<box>(1,2),(3,4),(5,6)</box>", 1),
        ('{"box": (1, 2), (3, 4), (5, 6, 7)}', 1),
        ('{"bbox_2d": [6]8, 154, 759, 593]}', 1),
        ('{"bbox_2d": [1:3, 154, 759, 593]}, {"bbox_2d": [9"0, 338, 1150, 1143], "label": "a"}', 2),
        ('{"bbox": [{"x": 1, "y": 2}, {"x": 3, "y": 4}], "label": "a"}', 1),
        ("car[[0, 1000, 999, 998]]", 1),
    ],
)
def test_parse_answer__impossible_boxes_are_counted(text: str, rejected: int) -> None:
    assert read(text) == ([], [], rejected)


@pytest.mark.parametrize(
    ("tail", "boxes", "rejected"),
    [
        (', {"bbox_2d": [5, 6, 7, 8], "label": "b', [A, B], 0),
        (', {"bbox_2d": [5, 6, 7, 8]', [A, B], 0),
        (', {"bbox_2d": [5, 6, 7, 8', [A], 1),
        (', {"bbox_2d": [5, 6\n```', [A], 1),
        (', {"bbox_2d": [5, 6\n```\n```json\n[[9,10,11,12]]\n```', [A, C], 1),
        (', {"label": "b"', [A], 1),
        (', {"bbox_2d": [8, 6, 7, 5], "la', [A], 1),
        (', {"bbox_2d": [5, 6, 7], "la', [A], 1),
        (', {"bb', [A], 1),
        (", ", [A], 0),
        (", [5, 6, 7, 8], [5, 6", [A, B], 1),
        ("] <|box_start|>(5,6),(7,8)", [A, B], 0),
        ("] <|box_start|><5><6><7><8>,<9><10", [A, B], 1),
        ("] <|box_start|>(5,6),(7,", [A], 1),
        ("] <|box_start|>(5,6),(7,8), (9,10),(11,12", [A, B], 1),
        ("] <ref>b</ref><box>(5,6),(7<ref>c</ref><box>(9,10),(11,12)</box>", [A, C], 1),
    ],
)
def test_parse_answer__cut_short_keeps_what_is_complete(tail: str, boxes: Boxes, rejected: int) -> None:
    found, _, count = read('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}' + tail)
    assert (found, count) == (boxes, rejected)


def test_parse_answer__cut_anywhere_loses_the_box_that_was_cut_and_counts_it(shared: Path) -> None:
    lines = (shared / "data" / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [record["text"] for record in map(json.loads, lines) if record["id"] in {1, 19, 21, 32, 43}]
    assert len(texts) == 5
    for text in texts:
        whole = parse_answer(text).objects
        for length in range(len(text)):
            answer = parse_answer(text[:length])
            boxes = [item.bbox_2d for item in answer.objects]
            assert boxes == [item.bbox_2d for item in whole[: len(boxes)]]
            begun = sum(item.start < length for item in whole)
            assert begun - len(boxes) in {0, 1}
            if text.startswith("<|object_ref"):  # a cut token is none: the box begins with a whole one
                assert answer.rejected <= begun - len(boxes)
            else:
                assert answer.rejected == begun - len(boxes)


DAMAGES = ["", *"[]{}()\"',:\n "]


@pytest.mark.parametrize("label", ["cat", "man's hat", '24" monitor', "a, b: c", "[x] {y}", "圆"])
def test_parse_answer__a_damaged_mark_costs_at_most_its_box_which_is_counted_and_invents_none(
    label: str,
) -> None:
    boxes = [(10, 15, 51, 82), (13, 20, 54, 87)]
    text = format_answer([DetectedObject(boxes[0], label), DetectedObject(boxes[1], "dog")])
    for place in (index for index, character in enumerate(text) if character in '[]{}",: '):
        for damaged in (text[:place] + mark + text[place + cut :] for mark in DAMAGES for cut in (0, 1)):
            found, _, rejected = read(damaged)
            assert found in (boxes, boxes[:1], boxes[1:]), damaged
            assert 2 <= len(found) + rejected <= 3, damaged  # a lone brace may begin another


def test_parse_answer__boxes_of_thinking_give_way_only_to_an_answer() -> None:
    assert read("<think>at [1, 2, 3, 4], [9, 9, 9, 9]</think>[]") == ([], [], 0)
    assert read("<think>at [1, 2, 3, 4]</think>") == ([A], [""], 0)
    for draft in (
        "◁think▷at {}◁/think▷",
        "[THINK]at {}[/THINK]",
        "<thinking>at {}</thinking>",
        "<reasoning>at {}</reasoning>",
        "<thought>at {}</thought>",
        "<|begin_of_thought|>at {}<|end_of_thought|>",
        "<|inner_prefix|>at {}<|inner_suffix|>",
        "<|channel|>analysis<|message|>at {}<|end|><|start|>assistant<|channel|>final<|message|>",
        "<think>at {}",
    ):
        text = (
            draft.format("[9, 9, 10, 10]")
            + '<answer>[1, 2, 3, 4]</answer><answer>[{"box": [5, 6, 7, 8]}]</answer>'
        )
        assert read(text) == ([A, B], ["", ""], 0)


def test_parse_answer__ranges_cover_the_whole_object() -> None:
    first, second = '{"bbox_2d": [1, 2, 3, 4], "label": "a"}', "{'label': 'b', 'bbox_2d': [5, 6, 7, 8]}"
    text = f"```json\n[\n\t{first},\n\t{second}\n]\n```"
    assert [text[item.start : item.end] for item in parse_answer(text).objects] == [first, second]
    tagged = "<ref>a</ref><box>(1,2),(3,4)</box>", "<box>(5,6),(7,8)</box>"
    text = "so " + "".join(tagged)
    assert [text[item.start : item.end] for item in parse_answer(text).objects] == list(tagged)


def test_parse_answer__ranges_of_an_object_with_several_boxes_are_the_boxes_own() -> None:
    text = '{"name": "a", "bbox": [1, 2, 3, 4], "name": "b", "bbox": [5, 6, 7, 8]}'
    assert parse_answer(text).objects == (
        ParsedObject(A, "a", 22, 34),
        ParsedObject(B, "b", 57, 69),
    )
    text = '{"bboxes": [[1, 2, 3, 4], [[5, 6], [7, 8]]]}'
    assert parse_answer(text).objects == (ParsedObject(A, "", 12, 24), ParsedObject(B, "", 27, 41))
    text = "<ref>a</ref><box>(1,2),(3,4) (5,6),(7,8)</box>"
    assert parse_answer(text).objects == (ParsedObject(A, "a", 17, 28), ParsedObject(B, "a", 29, 40))


# What could make a pattern start over at every character; each is repeated after what opens it.
NOISE = [
    *[
        "[",
        "{",
        '"',
        "'",
        "[{",
        '["',
        '[\\"',
        "[ '",
        '{"a":',
        "[(1,2),",
        "car:\n[1,2,3,4]\n",
        "1,2,3,4,car\n",
        "<box>",
        "[9",
        "car[[1,2,3,4]]",
        '{"box',
    ],
    *[
        "{box ",
        '["box"[ ',
        '{"a: ',
        '"label" ',
        "[1,2,3,4[",
        '{"box":,',
        "[1,[",
        "(1,2",
        "[[1],",
        "\\",
    ],
    *["<|box_start|>", "<ref>", "</think>", "</think><", "<points ", "<1><2>", "[<1>", "x1=1 y1=2 x2=3 y2="],
    *[
        "1,2,3,4 a\n",
        "1,2,3\n",
        ": 1,2,3,4 ",
        "(1,2) to ",
        "[// ",
        "[\\n",
        "[x1=1, ",
        '[{"x":1,"y":2},',
        "（1，2）",
    ],
    *[
        "[1,2,3,4;",
    ],
    *[
        "[1:2,",
        "(1,2),(3,4) and ",
        "<think>",
        "<answer>",
        "a\nbbox: [1,2,3,4]",
        '{"label":"a","bbox":[1,2,3,4],',
        '{"box":"1 ',
        "// ",
        '"label"" ',
    ],
    *['{"top_left":[1,2],', '["{\\"a', "['{'a", 'bbox="1 ', "{1,2,", "[：", "{“a”："],
]
AFTER = [
    ("[", "9"),
    ("[", "9,"),
    ('["', "\\"),
    ('{"box_2d": "', "9 "),
    ("[", " "),
    ("{", "a"),
    ("1,2", "\n"),
    ("<ref>", "a"),
    ("[1", ";"),
]


def cpu_seconds(text: str) -> float:
    start = time.process_time()
    parse_answer(text)
    return time.process_time() - start


@pytest.mark.parametrize(("opening", "unit"), [("", unit) for unit in NOISE] + AFTER)
def test_parse_answer__four_times_the_noise_takes_about_four_times_as_long(opening: str, unit: str) -> None:
    short, long = (opening + unit * (size // len(unit)) for size in (20_000, 80_000))
    ratios = (cpu_seconds(long) / cpu_seconds(short) for _ in range(5))  # a busy machine may disturb some
    assert any(ratio < 8 for ratio in ratios), "four if linear, sixteen if quadratic"


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["[", "{", '"', "9", "[{", "\\", '{"box', '{"a":', "<|box_start|>"])
def test_parse_answer__a_megabyte_of_noise_ends(unit: str) -> None:
    answer = parse_answer(unit * (1_000_000 // len(unit)))
    assert answer.objects == ()
    assert answer.rejected <= 1_000_000 // len(unit)


def test_parse_answer__deep_nesting_still_finds_the_box() -> None:
    assert read("[" * 100_000 + "1, 2, 3, 4" + "]" * 100_000)[0] == [A]
    assert read('{"a": ' * 100_000 + '{"bbox_2d": [1, 2, 3, 4], "label": "z"}') == ([A], ["z"], 0)
