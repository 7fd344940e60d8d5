"""The grammar of answers: all that training writes is inside, and every way through ends in a valid one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwendet.answers.format import format_answer, parse_answer
from qwendet.answers.grammar import MARKS, AnswerGrammar, AnswerState
from qwendet.data.samples import DetectedObject

LABELS = ["cat", "cat tree", 'le"ft \\ 圆', "a]}"]
SIZE = (644, 56)
GRAMMAR = AnswerGrammar(LABELS, SIZE)


def assert_valid(text: str, labels: list[str], size: tuple[int, int], most_boxes: int) -> list[Any]:
    """Valid JSON of the trained form, inside the image, with labels of the set."""
    records = json.loads(text)
    assert len(records) <= most_boxes
    for record in records:
        assert list(record) == ["bbox_2d", "label"]
        x1, y1, x2, y2 = record["bbox_2d"]
        assert 0 <= x1 < x2 <= size[0]
        assert 0 <= y1 < y2 <= size[1]
        assert all(isinstance(number, int) for number in record["bbox_2d"])
        assert record["label"] in labels
    assert json.dumps(records, ensure_ascii=False) == text
    parsed = parse_answer(text)
    assert (len(parsed.objects), parsed.rejected) == (len(records), 0)
    return records


@st.composite
def detected_objects(draw: st.DrawFn) -> DetectedObject:
    x1, y1 = draw(st.integers(0, SIZE[0] - 1)), draw(st.integers(0, SIZE[1] - 1))
    x2, y2 = draw(st.integers(x1 + 1, SIZE[0])), draw(st.integers(y1 + 1, SIZE[1]))
    return DetectedObject((x1, y1, x2, y2), draw(st.sampled_from(LABELS)))


@given(st.lists(detected_objects(), max_size=4))
def test_grammar__holds_every_answer_that_training_writes(objects: list[DetectedObject]) -> None:
    state = GRAMMAR.read(format_answer(objects).encode(), most_boxes=4)
    assert state == AnswerState(-1, boxes=len(objects))
    assert GRAMMAR.may_end(state)


@given(st.data())
def test_grammar__every_way_through_it_is_a_valid_answer(data: st.DataObject) -> None:
    state, text = AnswerState(), bytearray()
    bytes_drawn = st.sampled_from(sorted(GRAMMAR.alphabet))
    while not GRAMMAR.may_end(state):
        choices = {
            byte: after
            for byte in GRAMMAR.alphabet
            if (after := GRAMMAR.step(state, byte, most_boxes=2)) is not None
        }
        assert choices, f"a dead end after {bytes(text)!r}"
        byte = data.draw(bytes_drawn.filter(choices.__contains__)) if len(choices) > 1 else min(choices)
        state = choices[byte]
        text.append(byte)
    records = assert_valid(text.decode(), LABELS, SIZE, most_boxes=2)
    assert len(records) == state.boxes
    assert len(text) <= GRAMMAR.longest_object * max(1, state.boxes) + 2


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "]",
        "[ ",
        "[]]",
        '[{"bbox_2d": [01',
        '[{"bbox_2d": [-',
        '[{"bbox_2d": [644',
        '[{"bbox_2d": [10, 20, 10,',
        '[{"bbox_2d": [10, 20, 645',
        '[{"bbox_2d": [10, 20, 30, 57',
        '[{"bbox_2d": [10, 20, 30, 40], "label": "d',
        '[{"bbox_2d": [10, 20, 30, 40], "label": "cat t"',
        '[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}, {"bbox_2d": [1, 2, 3, 4], "label": "cat"},',
        '[{"bbox_2d": [10, 20, 30, 40], "label": "cat"},]',
    ],
)
def test_grammar__refuses(text: str) -> None:
    assert GRAMMAR.read(text.encode()[:-1], most_boxes=2) is not None
    assert GRAMMAR.read(text.encode(), most_boxes=2) is None


def test_grammar__an_image_of_one_pixel_has_one_box() -> None:
    grammar = AnswerGrammar(["a"], (1, 1))
    assert grammar.read(b'[{"bbox_2d": [0, 0, 1, 1], "label": "a"}]', most_boxes=1) == AnswerState(
        -1, boxes=1
    )
    assert grammar.read(b'[{"bbox_2d": [1', most_boxes=1) is None


def marked(text: str) -> bytes:
    """An answer in box tokens, each token as its byte."""
    written = text.encode()
    for token, byte in MARKS.items():
        written = written.replace(token.encode(), byte)
    return written


@given(st.lists(detected_objects(), max_size=4))
def test_grammar__holds_every_answer_in_box_tokens(objects: list[DetectedObject]) -> None:
    grammar = AnswerGrammar(LABELS, SIZE, "box_tokens")
    text = format_answer(objects, "box_tokens")
    state = grammar.read(marked(text), most_boxes=4)
    assert state is not None
    assert grammar.may_end(state)
    assert state.boxes == len(objects)
    found = [(item.bbox_2d, item.desc) for item in parse_answer(text).objects]
    assert sorted(found) == sorted((item.bbox_2d, item.desc) for item in objects)


@pytest.mark.parametrize(
    "text", ["[[", "[]]", "[<|object_ref_start|>", "<|box_start|>", "<|object_ref_start|>d"]
)
def test_grammar__refuses_in_box_tokens(text: str) -> None:
    grammar, written = AnswerGrammar(LABELS, SIZE, "box_tokens"), marked(text)
    assert grammar.read(written[:-1], most_boxes=2) is not None
    assert grammar.read(written, most_boxes=2) is None
