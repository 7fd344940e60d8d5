"""Constrained answers: a model that never learned the form cannot leave it, whatever its vocabulary."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from qwendet.answers.grammar import AnswerGrammar, AnswerState
from qwendet.data.samples import Sample
from qwendet.errors import ConfigError
from qwendet.infer import infer
from qwendet.inference.constrained_decoding import AnswerConstraint, AnswerVocabulary, token_bytes
from qwendet.inference.generation import decode_with_ends, likeliest, verified
from qwendet.inference.predictor import Predictor
from qwendet.inference.text_answers import answer_size
from qwendet.loader import Bundle
from tests.unit.answers.test_grammar import assert_valid

LABELS = ["red circle", "橙色星星", "a"]
SIZE = (84, 140)


@pytest.fixture(scope="module")
def tokenizers(bundle: Bundle, shared: Path) -> dict[str, Any]:
    folder = shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct"
    return {"tiny": bundle.processor.tokenizer, "published": AutoTokenizer.from_pretrained(folder)}


@pytest.fixture(scope="module")
def vocabularies(tokenizers: dict[str, Any]) -> dict[str, AnswerVocabulary]:
    alphabet = AnswerGrammar(LABELS, SIZE).alphabet
    return {name: AnswerVocabulary(tokenizer, alphabet) for name, tokenizer in tokenizers.items()}


@pytest.mark.parametrize("name", ["tiny", "published"])
def test_following__is_what_trying_every_token_finds(
    name: str, tokenizers: dict[str, Any], vocabularies: dict[str, AnswerVocabulary]
) -> None:
    """The walk against the definition: tokens of the whole vocabulary whose every byte may stand there."""
    grammar = AnswerGrammar(LABELS, SIZE)
    vocabulary, tokenizer = vocabularies[name], tokenizers[name]
    special = tokenizer.get_added_vocab().values()
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    pieces = {token: token_bytes(word) for token, word in enumerate(words) if token not in special}
    for begun in ("", "[", '[{"bbox_2d": [', '[{"bbox_2d": [8', '[{"bbox_2d": [8, 9, 10, 11], "label": "'):
        state = grammar.read(begun.encode(), 1)
        assert state is not None
        wanted = {token for token, text in pieces.items() if may_follow(grammar, state, text)}
        assert set(vocabulary.following(grammar, state, 1)) == wanted != set(), begun


@pytest.mark.parametrize("name", ["tiny", "published"])
def test_box_tokens__a_byte_does_not_stand_for_the_token_of_a_box(
    name: str, tokenizers: dict[str, Any]
) -> None:
    """The grammar writes marks as bytes, which tokens of the vocabulary are, too."""
    tokenizer, grammar = tokenizers[name], AnswerGrammar(LABELS, SIZE, "box_tokens")
    vocabulary = AnswerVocabulary(tokenizer, grammar.alphabet)
    state = AnswerState()
    for written, wanted in (
        (b"", {"<|object_ref_start|>", "[", "[]"}),
        (b"\x01a", {"<|object_ref_end|>"}),
        (b"\x01a\x02", {"<|box_start|>"}),
        (b"\x01a\x02\x03(1,2),(3,4)", {"<|box_end|>"}),
    ):
        state = grammar.read(written, 1) or state
        words = tokenizer.convert_ids_to_tokens(vocabulary.following(grammar, state, 1))
        assert set(words) <= wanted, written
        assert words


def may_follow(grammar: AnswerGrammar, state: AnswerState | None, text: bytes) -> bool:
    for byte in text:
        state = None if state is None else grammar.step(state, byte, 1)
    return state is not None and bool(text)


def test_following__a_complete_answer_can_only_end(vocabularies: dict[str, AnswerVocabulary]) -> None:
    for vocabulary in vocabularies.values():
        assert vocabulary.following(AnswerGrammar(LABELS, SIZE), AnswerState(-1), 5) == [vocabulary.end_id]
    assert vocabularies["published"].end_id == 151_645


def choose(constraint: AnswerConstraint, row: int, scores: torch.Tensor) -> int:
    """The token that is written: the likeliest of those that are allowed."""
    best = max(sorted(constraint.allowed(row)), key=lambda token: float(scores[token]))
    found = likeliest(scores[None, None])[0]
    (choice,) = verified(found, scores[None], [], None, row, constraint, set())
    assert choice.token == best
    assert choice.log_prob == pytest.approx(float(scores.log_softmax(-1)[best]), abs=1e-4)
    return choice.token


def write(
    constraint: AnswerConstraint, tokenizer: Any, tokens: int, seed: int, width: int
) -> tuple[list[list[int]], list[str]]:
    """Answers ``constraint`` allows to a model of random scores, greedily."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(constraint.grammars)
    written: list[list[int]] = [[] for _ in range(rows)]
    for _ in range(tokens):
        scores = torch.randn(rows, width, generator=generator)
        for row in range(rows):
            written[row].append(choose(constraint, row, scores[row]))
    written = [row[: row.index(tokenizer.eos_token_id)] for row in written]
    return written, [decode_with_ends(tokenizer, row)[0] for row in written]


@pytest.mark.parametrize("name", ["tiny", "published"])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), tokens=st.integers(3, 160))
def test_constraint__random_scores_write_whole_valid_answers_however_few_the_tokens(
    name: str,
    tokenizers: dict[str, Any],
    vocabularies: dict[str, AnswerVocabulary],
    seed: int,
    tokens: int,
) -> None:
    sizes = [SIZE, (9, 1000)]
    grammars = [AnswerGrammar(LABELS, size) for size in sizes]
    constraint = AnswerConstraint(vocabularies[name], grammars, most_boxes=3, max_new_tokens=tokens)
    width = max(vocabularies[name].end_id, *vocabularies[name].bytes_of) + 10
    _, texts = write(constraint, tokenizers[name], tokens, seed, width)
    for text, size in zip(texts, sizes, strict=True):
        assert_valid(text, LABELS, size, most_boxes=3)


def test_constraint__a_model_that_only_repeats_is_stopped_by_the_cap(
    vocabularies: dict[str, AnswerVocabulary], tokenizers: dict[str, Any]
) -> None:
    """The end of turn is the last thing this one wants."""
    vocabulary, tokenizer = vocabularies["tiny"], tokenizers["tiny"]
    constraint = AnswerConstraint(vocabulary, [AnswerGrammar(LABELS, SIZE)], 7, max_new_tokens=2000)
    scores = torch.zeros(1, len(tokenizer))
    scores[0, vocabulary.end_id] = -100
    for token, text in vocabulary.bytes_of.items():
        scores[0, token] -= text.count(b"]")
    written: list[int] = []
    while written[-1:] != [vocabulary.end_id]:
        written.append(choose(constraint, 0, scores[0]))
    text = decode_with_ends(tokenizer, written[:-1])[0]
    assert len(assert_valid(text, LABELS, SIZE, most_boxes=7)) == 7


# Through the predictor


@pytest.fixture(scope="module")
def constrained(bundle: Bundle) -> Predictor:
    settings = bundle.config.infer.model_copy(
        update={"constrained": True, "max_detections": 2, "max_new_tokens": 120, "score_threshold": 0.0}
    )
    return Predictor(replace(bundle, config=bundle.config.model_copy(update={"infer": settings})))


def test_predict__the_untrained_model_writes_boxes_of_the_label_set_inside_the_image(
    constrained: Predictor, lessons: list[Sample]
) -> None:
    predictions = list(constrained.predict(lessons, "text"))
    assert [prediction.rejected for prediction in predictions] == [0] * len(lessons)
    labels = list(constrained.bundle.labels)
    for sample, prediction in zip(lessons, predictions, strict=True):
        item, answer = constrained.encoder.encode(sample, with_answer=False), prediction.answer
        assert answer is not None
        records = assert_valid(answer.text, labels, answer_size(constrained.bundle, item), most_boxes=2)
        assert len(records) == len(prediction.detections)
        assert not answer.truncated
    assert any(prediction.detections for prediction in predictions)


def test_predict__a_forced_token_keeps_the_score_that_the_model_gave_it(
    constrained: Predictor, lessons: list[Sample]
) -> None:
    """Scored within the grammar alone, the fixed parts of an answer would have probability one."""
    detections = [item for found in constrained.predict(lessons, "text") for item in found.detections]
    uniform = 1 / len(constrained.bundle.processor.tokenizer)
    assert detections
    assert all(0 < item.score < 30 * uniform for item in detections)
    assert all(math.isfinite(item.score) for item in detections)


def test_infer__constrained_is_refused_where_the_head_answers(
    bundle: Bundle, scenes_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda folder, **settings: Predictor(bundle))
    with pytest.raises(ConfigError, match="text answers") as caught:
        infer(Path("unused"), [scenes_file], constrained=True)
    assert caught.value.problems[0].fix == "add --mode text"
