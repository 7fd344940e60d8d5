"""Answers: writing and reading are inverse, a prefix loses only its tail, and no text is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from qwendet.answers.format import format_answer, parse_answer
from qwendet.data.samples import DetectedObject

NUMBERS = st.floats(-50, 5000)
SIZES = st.floats(0.01, 3000)
# Any text, and text made of what could be taken for structure.
PIECES = st.sampled_from(
    [
        *"\"'\\[]{}(),:\n\t \x00\u2028圆😀a1",
        "[1, 2, 3, 4]",
        "(1,2),(3,4)",
        '{"bbox_2d": [',
        '"label": "',
        "}, {",
    ]
    + ["```", "</think>", "<answer>", "<|box_start|>", "<|box_end|>", "<ref>", "<box>", "\\u0041", "1e999"]
    + [
        "null",
        "NaN",
        'data-bbox="1 2 3 4"',
        "1,2,3,4 a\n",
        "<1><2>",
        "x1=1, y1=2, x2=3, y2=4",
        "{1, 2, 3, 4}",
    ]
    + ['"top_left": ', '"x": 1, "y": 2', "（1，2）", "｛", "］", "// ", "\\n", " to ", '"{"a', "<points "]
)
TEXTS = st.text() | st.lists(PIECES, max_size=30).map("".join)


@st.composite
def detected_objects(draw: st.DrawFn) -> DetectedObject:
    x1, y1 = draw(NUMBERS), draw(NUMBERS)
    return DetectedObject((x1, y1, x1 + draw(SIZES), y1 + draw(SIZES)), draw(TEXTS))


OBJECTS = st.lists(detected_objects(), max_size=5)


@given(OBJECTS)
def test_parse_answer__inverts_format_answer(objects: list[DetectedObject]) -> None:
    text = format_answer(objects)
    answer = parse_answer(text)
    found = [{"bbox_2d": list(item.bbox_2d), "label": item.desc} for item in answer.objects]
    assert (found, answer.rejected) == (json.loads(text), 0)
    assert [json.loads(text[item.start : item.end]) for item in answer.objects] == found


@given(OBJECTS)
def test_format_answer__sorted_boxes_with_area_near_the_given_ones(objects: list[DetectedObject]) -> None:
    boxes = [record["bbox_2d"] for record in json.loads(format_answer(objects))]
    assert [(y1, x1) for x1, y1, _, _ in boxes] == sorted((y1, x1) for x1, y1, _, _ in boxes)
    assert all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in boxes)
    given_sums = sorted(sum(item.bbox_2d) for item in objects)
    assert all(
        abs(sum(box) - total) <= 4.01 for box, total in zip(sorted(boxes, key=sum), given_sums, strict=True)
    )


@given(OBJECTS.filter(bool), st.data())
def test_parse_answer__a_prefix_yields_a_prefix(objects: list[DetectedObject], data: st.DataObject) -> None:
    text = format_answer(objects)
    whole = parse_answer(text).objects
    length = data.draw(st.integers(0, len(text)), label="length")
    answer = parse_answer(text[:length])
    boxes = [item.bbox_2d for item in answer.objects]
    assert boxes == [item.bbox_2d for item in whole[: len(boxes)]]
    assert answer.rejected <= 1
    assert len(boxes) + answer.rejected == sum(item.start < length for item in whole)


TAME = st.builds(
    lambda x, y, width, height, label: DetectedObject((x, y, x + width, y + height), label),
    *[st.integers(0, 900)] * 2,
    *[st.integers(1, 900)] * 2,
    st.sampled_from(["cat", "man's hat", '24" monitor', "a, b: c", "[x] {y}", "圆"]),
)


@given(
    st.lists(TAME, min_size=1, max_size=4), st.sampled_from(["", *"[]{}()\"',:\n "]), st.booleans(), st.data()
)
def test_parse_answer__one_damaged_mark_costs_at_most_one_box_which_is_counted_and_invents_none(
    objects: list[DetectedObject], mark: str, replace: bool, data: st.DataObject
) -> None:
    text = format_answer(objects)
    whole = [item.bbox_2d for item in parse_answer(text).objects]
    marks = [index for index, character in enumerate(text) if character in '[]{}",: ']
    place = data.draw(st.sampled_from(marks), label="place")
    damaged = text[:place] + mark + text[place + replace :]
    answer = parse_answer(damaged)
    boxes = [item.bbox_2d for item in answer.objects]
    remaining = iter(whole)
    assert all(box in remaining for box in boxes), "an invented box, or another order"
    assert len(boxes) >= len(whole) - 1
    assert len(whole) <= len(boxes) + answer.rejected <= len(whole) + 1  # a lone brace may begin another


WRITERS: dict[str, Callable[[str, list[int]], str]] = {
    "Qwen-VL": lambda label, box: f"<ref>{label}</ref><box>({box[0]},{box[1]}),({box[2]},{box[3]})</box>",
    "Rex-Omni": lambda label, box: (
        f"<|object_ref_start|>{label}<|object_ref_end|>"
        f"<|box_start|>{''.join(f'<{number}>' for number in box)}<|box_end|>, "
    ),
    "two corners": lambda label, box: json.dumps({"label": label, "bbox": [box[:2], box[2:]]}),
    "list": lambda label, box: json.dumps({"object": label, "bboxes": [box]}),
    "Python": lambda label, box: repr([{"label": label, "bbox_2d": tuple(box)}]),
    "words": lambda label, box: f"- **{label}**: {box}\n",
}


@given(st.lists(TAME, max_size=4), st.sampled_from(list(WRITERS)))
def test_parse_answer__inverts_every_way_of_writing(objects: list[DetectedObject], way: str) -> None:
    simple = [item for item in objects if item.desc in {"cat", "man's hat", "圆"}]
    text = "".join(WRITERS[way](item.desc, [int(number) for number in item.bbox_2d]) for item in simple)
    answer = parse_answer(text)
    assert [(item.bbox_2d, item.desc) for item in answer.objects] == [
        (item.bbox_2d, item.desc) for item in simple
    ]
    assert answer.rejected == 0


PLAIN_AROUND = [
    ("", " "),
    ("Here are the boxes:\n", "\nThe cups are at 3 of 5 places; it's so."),
    ("```json\n", "\n```"),
    ("json\n", "\n"),
    ("**Answer** (in pixels, 640 x 480): ", " // done\n"),
    ('"', '"'),
]
DRAFTS_AROUND = [
    ('<think>It\'s at [9, 9, 10, 10], no, {"a": [1, 2</think>\n\n', "<|im_end|>"),
    ("I see [9, 9, 10, 10] <answer>", "</answer>"),
]


@given(OBJECTS.filter(bool), st.sampled_from(DRAFTS_AROUND + PLAIN_AROUND), st.sampled_from(PLAIN_AROUND))
def test_parse_answer__text_around_an_answer_changes_nothing(
    objects: list[DetectedObject], outer: tuple[str, str], inner: tuple[str, str]
) -> None:
    text = format_answer(objects)
    before = outer[0] + inner[0]
    alone, surrounded = parse_answer(text), parse_answer(before + text + inner[1] + outer[1])
    shift = len(before)
    assert surrounded.rejected == 0
    assert list(surrounded.objects) == [
        dataclasses.replace(item, start=item.start + shift, end=item.end + shift) for item in alone.objects
    ]


@given(TEXTS)
@example("[" * 200_000)
@example('{"bbox_2d": [' * 50_000)
@example('["' * 100_000)
def test_parse_answer__never_raises_and_returns_only_possible_boxes(text: str) -> None:
    answer = parse_answer(text)
    assert answer.rejected >= 0
    for item in answer.objects:
        x1, y1, x2, y2 = item.bbox_2d
        assert x1 < x2 < float("inf")
        assert y1 < y2 < float("inf")
        assert 0 <= item.start < item.end <= len(text)
