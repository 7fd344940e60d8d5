"""Drafts: the rest of an answer by boxes, and by what was written before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from qwendet.answers.format import as_written, format_answer
from qwendet.answers.grammar import MARKS, AnswerGrammar
from qwendet.data.samples import DetectedObject
from qwendet.demo.tiny import embedded_folder
from qwendet.families.family import AnswerForm
from qwendet.inference.drafts import AnswerDrafter, BoxDraft, DraftTokens, Repeats, with_digits

LABELS = ["red circle", "red square", "caf\u00e9 7"]
SIZE = (1000, 1000)
TWO = [DetectedObject((97, 43, 180, 121), "red circle"), DetectedObject((10, 300, 60, 390), "café 7")]
END = b"\x05"


def as_bytes(answer: str) -> bytes:
    """An answer with marks in place of box tokens."""
    text = answer.encode()
    for word, mark in MARKS.items():
        text = text.replace(word.encode(), mark)
    return text


def draft_by(objects: list[DetectedObject] | None, form: AnswerForm = "json") -> BoxDraft:
    grammar = AnswerGrammar(LABELS, SIZE, form)
    return BoxDraft(grammar, LABELS, None if objects is None else as_written(objects))


@pytest.mark.parametrize("form", ["json", "box_tokens"])
@pytest.mark.parametrize("objects", [TWO[:1], TWO], ids=len)
def test_rest__of_an_answer_that_agrees_is_what_is_left_of_it_at_every_byte(
    objects: list[DetectedObject], form: AnswerForm
) -> None:
    whole = as_bytes(format_answer(objects, form)) + END
    draft = draft_by(objects, form)
    for at in range(len(whole) - 1):
        assert draft.rest() == whole[at:], whole[:at]
        draft.write(whole[at : at + 1])


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        (
            '[{"bbox_2d": [102, 4',
            '3, 180, 121], "label": "red circle"}, {"bbox_2d": [10, 300, 60, 390], "lab',
        ),
        ('[{"bbox_2d": [102, 5', '0, 180, 121], "label": "red circle"}'),
        ('[{"bbox_2d": [97, 43, 180, 121], "label": "red s', 'quare"}, {"bbox_2d": [10'),
        ('[{"bbox_2d": [97, 43, 180, 121], "label": "caf', 'é 7"}, '),
        ('[{"bbox_2d": [12, 301', ', 60, 390], "label": "café 7"}'),
        ('[{"bbox_2d": [8, 303, 61, 389], "label": "café 7"}', "]"),
    ],
)
def test_rest__goes_on_from_what_is_written_with_the_nearest_box(written: str, rest: str) -> None:
    draft = draft_by(TWO)
    draft.write(written.encode())
    assert draft.rest().startswith(rest.encode())


def test_rest__an_object_that_the_head_did_not_find_goes_on_like_the_one_before() -> None:
    draft = draft_by(TWO[:1])
    draft.write(b'[{"bbox_2d": [97, 43, 180, 121], "label": "red circle"}, {"bbox_2d": [600, 7')
    assert draft.rest() == b"0, 683, "  # as wide as the last one, and two numbers are enough


def test_rest__is_not_known_where_the_head_found_nothing_or_the_answer_goes_on_behind_its_boxes() -> None:
    assert draft_by([]).rest() == b""
    draft = draft_by(TWO[:1])
    draft.write(b'[{"bbox_2d": [97, 43, 180, 121], "label": "red circle"}')
    assert draft.rest() == b"]" + END
    draft.write(b', {"bbox_2d": [600, 700, 650, 750], "label": "red square"}')
    assert draft.rest() == b""


@pytest.mark.parametrize("form", ["json", "box_tokens"])
def test_rest__of_an_answer_that_is_closed_before_its_boxes_is_the_end(form: AnswerForm) -> None:
    draft = draft_by(TWO, form)
    draft.write(b"[]")
    assert draft.rest() == END


def test_rest__without_a_head_says_nothing_before_the_first_object_is_written() -> None:
    draft = draft_by(None)
    for text in (b"", b"[", b'{"bbox_2d": [1'):
        draft.write(text)
        assert draft.rest() == b""
    draft.write(b'0, 20, 30, 40], "label": "red square"}')
    assert draft.rest() == b""
    draft.write(b', {"bbox_2d": [100, ')
    assert draft.rest() == b"20, 120, "  # as wide as the last one
    draft.write(b'31, 130, 55], "label": "red ')
    assert draft.rest().startswith(b'square"}, {"bbox_2d": [')


@pytest.mark.parametrize("text", [b"There are two", b'[{"bbox": [', b"```json"])
def test_rest__of_another_form_is_not_known(text: bytes) -> None:
    draft = draft_by(TWO)
    draft.write(text)
    assert draft.rest() == b""


@given(digits=st.integers(0, 9999), number=st.integers(0, 9999))
def test_with_digits__is_the_nearest_number_that_begins_with_them(digits: int, number: int) -> None:
    found = with_digits(str(digits).encode(), number)
    assert str(found).startswith(str(digits))
    rivals = [rival for rival in range(20_001) if str(rival).startswith(str(digits))]
    assert abs(found - number) == min(abs(rival - number) for rival in rivals)


@pytest.fixture(scope="module")
def tokens() -> DraftTokens:
    return DraftTokens(AutoTokenizer.from_pretrained(embedded_folder("tiny")))


def test_repeats__propose_what_followed_up_to_the_next_number(tokens: DraftTokens) -> None:
    def ids(text: str) -> list[int]:
        return tokens.ids(text.encode())

    repeats = Repeats((12, 3), tokens)
    repeats.write(ids('[{"bbox_2d": [12, 34, 56, 78], "label": "red"}, {"bbox_2d": [9, 1, 77, 123'))
    assert repeats.following(99) == ids('], "label": "red"}, {"bbox_2d": [')
    assert repeats.following(4) == ids('], "label": "red"}')[:4]
    repeats.write(ids('], "label": "green"}, {"bbox_2d": [5'))
    assert repeats.following(99) == ids(", ")
    repeats.write(ids(" of"))
    assert repeats.following(99) == []


def test_drafter__is_as_long_as_the_last_draft_held(tokens: DraftTokens) -> None:
    objects = [DetectedObject((10 * at, 10 * at, 10 * at + 9, 10 * at + 9), "red circle") for at in range(20)]
    answer = tokens.ids(format_answer(objects).encode())
    drafter = AnswerDrafter(tokens, answer[:40], draft_by(objects))
    lengths, at = [], 0
    drafter.write(answer[:1])
    at += 1
    for wrong in (False, False, False, True, True, False):
        draft = drafter.draft()
        lengths.append(len(draft))
        held = 0 if wrong else len(draft)
        assert draft == answer[at : at + len(draft)]
        drafter.write(answer[at : at + held + 1])
        at += held + 1
    assert lengths == [16, 32, 64, 64, 8, 8]


def test_draft_tokens__are_the_tokenizers_own(tokens: DraftTokens) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_folder("tiny"))
    for form in ("json", "box_tokens"):
        text = format_answer(TWO, form)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens.ids(as_bytes(text)) == ids
        assert tokens.text(ids) == as_bytes(text)
    assert tokens.ids(b"]" + END)[-1] == tokenizer.eos_token_id
    assert json.loads(tokens.text(tokens.ids(b'["x"]'))) == ["x"]
