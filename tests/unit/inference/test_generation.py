"""Generation: text and token ends as the tokenizer decodes them, and the argmax that training sees."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from qwendet.data.samples import Sample
from qwendet.encoding.collate import Batch
from qwendet.inference.cached_forward import AnswersInProgress
from qwendet.inference.generation import GeneratedAnswer, decode_with_ends, generate_answers
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection

NEW_TOKENS = 20
NEVER = 10**9


@pytest.fixture(scope="module")
def tokenizer(bundle: Bundle) -> Any:
    return bundle.processor.tokenizer


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


# Text and token ends


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[{"bbox_2d": [1, 2, 30, 40], "label": "red circle"}]',
        "红色 圆圈 and more",
        "🙂 a 👩‍👩‍👧 b",
        "caf\u00e9\n\ttabs  and   spaces",
        "<|box_start|>(1,2),(3,4)<|box_end|>",
    ],
)
def test_decode_with_ends__is_the_tokenizers_text(tokenizer: Any, text: str) -> None:
    ids = ids_of(tokenizer, text)
    decoded, ends = decode_with_ends(tokenizer, ids)
    assert decoded == tokenizer.decode(ids) == text
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert ends[-1:] in ([], [len(text)])


def test_decode_with_ends__a_split_character_belongs_to_its_last_token(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "a🙂b")
    assert len(ids) == 6
    assert decode_with_ends(tokenizer, ids) == ("a🙂b", [1, 1, 1, 1, 2, 3])


def test_decode_with_ends__each_token_ends_where_its_own_text_does(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "Locate every red circle.")
    text, ends = decode_with_ends(tokenizer, ids)
    starts = [0, *ends[:-1]]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert pieces == [tokenizer.decode([token]) for token in ids]


def test_decode_with_ends__half_a_character_at_the_end(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "a🙂")[:3]
    assert decode_with_ends(tokenizer, ids) == ("a\ufffd", [1, 1, 2])
    assert tokenizer.decode(ids) == "a\ufffd"


def test_decode_with_ends__ids_that_the_tokenizer_lacks_write_nothing(tokenizer: Any) -> None:
    """Published embeddings have more rows than the tokenizer has entries."""
    ids = [*ids_of(tokenizer, "ab"), len(tokenizer) + 5, *ids_of(tokenizer, "c")]
    text, ends = decode_with_ends(tokenizer, ids)
    assert (text, ends[-2:]) == ("abc", [2, 3])
    assert tokenizer.decode(ids) == "abc"


@given(numbers=st.lists(st.integers(0, 10_000), max_size=12))
def test_decode_with_ends__any_tokens_give_the_tokenizers_text(tokenizer: Any, numbers: list[int]) -> None:
    ids = [number % len(tokenizer) for number in numbers]
    text, ends = decode_with_ends(tokenizer, ids)
    assert text == tokenizer.decode(ids)
    assert ends == sorted(ends)
    assert ends[-1:] == ([len(text)] if ids else [])


# Score


ANSWER = GeneratedAnswer(
    text="ab🙂cd", token_ends=(2, 2, 3, 5), log_probs=(-0.1, -0.2, -0.4, -0.8), truncated=False
)


@pytest.mark.parametrize(
    ("start", "end", "mean"),
    [
        (0, 2, -0.1),
        (0, 1, -0.1),
        (1, 4, -(0.1 + 0.2 + 0.4 + 0.8) / 4),
        (2, 3, -0.4),
        (3, 5, -0.8),
        (0, 5, -(0.1 + 0.2 + 0.4 + 0.8) / 4),
    ],
)
def test_score__is_the_mean_over_the_tokens_that_reach_into_the_range(
    start: int, end: int, mean: float
) -> None:
    """The second token, the first bytes of the emoji, counts where the range holds what is around it."""
    assert ANSWER.score(start, end) == pytest.approx(math.exp(mean))


def test_score__of_no_tokens_is_0() -> None:
    assert ANSWER.score(5, 5) == 0.0
    assert GeneratedAnswer("", (), (), truncated=False).score(0, 0) == 0.0


# Greedy generation


@pytest.fixture(scope="module")
def lively(bundle: Bundle) -> Qwen25VLWithDetection:
    """The untrained model with weights large enough that it does not repeat one token for ever."""
    vlm = copy.deepcopy(bundle.detector.vlm).eval()
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(1.5 if "embed" in name else 5.0)
    return Qwen25VLWithDetection(vlm, None)


@pytest.fixture(scope="module")
def questions(bundle: Bundle, lessons: list[Sample]) -> Batch:
    encoder = bundle.encoder()
    batch = bundle.collator()([encoder.encode(lesson, with_answer=False) for lesson in lessons[:2]])
    assert (batch["attention_mask"].sum(1) < batch["attention_mask"].shape[1]).tolist() == [False, True]
    return batch


class Listens:
    """A tokenizer that notes the ids that it is given to decode.

    Args:
        tokenizer: decodes.
        end_id: the token that ends an answer; by default one that no model writes.
    """

    def __init__(self, tokenizer: Any, end_id: int = NEVER) -> None:
        self.tokenizer = tokenizer
        self.eos_token_id = self.pad_token_id = end_id
        self.heard: list[list[int]] = []

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        self.heard.append(ids)
        tokens: list[str] = self.tokenizer.convert_ids_to_tokens(ids)
        return tokens


def ids_written(detector: Qwen25VLWithDetection, batch: Batch, tokenizer: Any) -> list[list[int]]:
    """Ids of answers of ``NEW_TOKENS``."""
    listener = Listens(tokenizer)
    generate_answers(detector, listener, batch, NEW_TOKENS)
    return listener.heard


@torch.no_grad()
def published(detector: Qwen25VLWithDetection, batch: Batch, **settings: Any) -> list[list[int]]:
    """Ids that transformers' own ``generate`` writes."""
    own = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, **settings)
    vlm: Any = detector.vlm
    sequences = vlm.generate(**{key: batch[key] for key in own}, generation_config=config)
    ids: list[list[int]] = sequences[:, batch["input_ids"].shape[1] :].tolist()
    return ids


@torch.no_grad()
def teacher_forced(detector: Qwen25VLWithDetection, batch: Batch, new: list[list[int]]) -> torch.Tensor:
    """Log-probabilities ``(B, NEW_TOKENS, V)`` of the detector's own forward over question and answer."""
    answers = torch.tensor(new)
    ones = torch.ones_like(answers)
    behind = batch["position_ids"][:, :, -1:] + ones.cumsum(1)
    whole = batch | {
        "input_ids": torch.cat([batch["input_ids"], answers], 1),
        "attention_mask": torch.cat([batch["attention_mask"], ones], 1),
        "position_ids": torch.cat([batch["position_ids"], behind], 2),
        "num_tokens": [count + NEW_TOKENS for count in batch["num_tokens"]],
    }
    _, images = detector.encode_images(whole["pixel_values"], whole["image_grid_thw"])
    hidden = detector.run_language_model(whole, detector._embed(whole)[0], images)
    return detector.vlm.lm_head(hidden[:, -NEW_TOKENS - 1 : -1]).log_softmax(-1)


def test_generate_answers__write_what_one_forward_finds_likeliest(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch
) -> None:
    """With cache, token by token, padded on the left = without cache, at once: positions are the same."""
    listener = Listens(bundle.processor.tokenizer)
    answers = generate_answers(lively, listener, questions, NEW_TOKENS)
    new = listener.heard
    log_probs = teacher_forced(lively, questions, new)
    assert all(len(set(row)) >= 8 for row in new)
    assert new[0] != new[1]
    assert log_probs.argmax(-1).tolist() == new
    found = torch.tensor([answer.log_probs for answer in answers])
    torch.testing.assert_close(found, log_probs.amax(-1), rtol=0, atol=1e-4)
    assert [answer.truncated for answer in answers] == [True, True]


def test_generate_answers__write_what_transformers_generate_writes(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch
) -> None:
    written = ids_written(lively, questions, bundle.processor.tokenizer)
    assert written == published(lively, questions)


def test_generate_answers__a_question_alone_gets_the_same_answer(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch, lessons: list[Sample]
) -> None:
    tokenizer = bundle.processor.tokenizer
    together = ids_written(lively, questions, tokenizer)
    encoder = bundle.encoder()
    for lesson, expected in zip(lessons[:2], together, strict=True):
        alone = bundle.collator()([encoder.encode(lesson, with_answer=False)])
        assert ids_written(lively, alone, tokenizer) == [expected]


def test_generate_answers__logits_are_the_layers_own_and_its_hooks_run(
    bundle: Bundle, lively: Qwen25VLWithDetection, lessons: list[Sample]
) -> None:
    """Five questions: enough for oneDNN. The layer is left as it was."""
    encoder, lm_head = bundle.encoder(), lively.vlm.lm_head
    five = bundle.collator()([encoder.encode(lesson, with_answer=False) for lesson in lessons[:1] * 5])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = lm_head.register_forward_hook(lambda _, given, found: seen.append((given[0], found)))
    ids_written(lively, five, bundle.processor.tokenizer)
    handle.remove()
    assert len(seen) == NEW_TOKENS
    for states, logits in seen:
        expected = torch.nn.functional.linear(states, lm_head.weight.detach())
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    assert "forward" not in vars(lm_head)


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}, {"do_sample": True, "temperature": 5.0}],
    ids=lambda settings: next(iter(settings)),
)
def test_generate_answers__the_models_own_generation_settings_change_nothing(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch, settings: dict[str, Any]
) -> None:
    """The published models come with do_sample and a repetition penalty of 1.05."""
    expected = generate_answers(lively, bundle.processor.tokenizer, questions, NEW_TOKENS)
    opinionated = copy.deepcopy(lively)
    opinionated.vlm.generation_config.update(**settings)
    assert generate_answers(opinionated, bundle.processor.tokenizer, questions, NEW_TOKENS) == expected


@pytest.mark.parametrize("ends_first", [0, 1], ids=["the padded goes on", "the padded ends"])
def test_generate_answers__one_that_ends_leaves_and_the_others_go_on_unchanged(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch, ends_first: int
) -> None:
    tokenizer = bundle.processor.tokenizer
    endless = ids_written(lively, questions, tokenizer)
    end = next(token for token in endless[ends_first][5:] if token not in endless[1 - ends_first])
    sizes: list[int] = []
    handle = lively.vlm.lm_head.register_forward_hook(lambda _, given, found: sizes.append(len(found)))
    listener = Listens(tokenizer, end)
    answers = generate_answers(lively, listener, questions, NEW_TOKENS)
    handle.remove()
    at = endless[ends_first].index(end)
    assert sizes == [2] * (at + 1) + [1] * (NEW_TOKENS - at - 1)
    expected = [row[: row.index(end)] if end in row else row for row in endless]
    assert listener.heard == expected
    assert [answer.truncated for answer in answers] == [row == 1 - ends_first for row in range(2)]
    for answer, ids in zip(answers, expected, strict=True):
        assert len(answer.log_probs) == len(answer.token_ends) == len(ids)
        assert answer.text == decode_with_ends(tokenizer, ids)[0]


def test_generate_answers__that_end_at_once_are_empty(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch
) -> None:
    tokenizer = bundle.processor.tokenizer
    listener = Listens(tokenizer)
    listener.eos_token_id, listener.pad_token_id = (
        row[0] for row in ids_written(lively, questions, tokenizer)
    )
    answers = generate_answers(lively, listener, questions, NEW_TOKENS)
    assert answers == [GeneratedAnswer("", (), (), truncated=False)] * 2


# Drafts


class Foresees:
    """Drafts an answer that is known, and wrong tokens behind some of its own.

    Args:
        answer: its tokens.
        drafts: of each draft how many tokens are right, and how many wrong ones follow.
    """

    def __init__(self, answer: list[int], drafts: Sequence[tuple[int, int]]) -> None:
        self.answer, self.drafts = answer, cycle(drafts)
        self.written: list[int] = []

    def write(self, tokens: Sequence[int]) -> None:
        self.written += tokens

    def draft(self) -> list[int]:
        right, wrong = next(self.drafts)
        at = len(self.written)
        ahead = self.answer[at : at + right + wrong]
        return ahead[:right] + [(token + 7) % 100 for token in ahead[right:]]


def drafted(
    detector: Qwen25VLWithDetection,
    batch: Batch,
    tokenizer: Any,
    drafters: Sequence[Foresees],
    most: int = NEW_TOKENS,
) -> tuple[list[GeneratedAnswer], int]:
    """Answers by drafts, and how many forwards of the model they took."""
    forwards: list[int] = []
    handle = detector.vlm.model.language_model.register_forward_hook(lambda *_: forwards.append(1))
    try:
        return generate_answers(detector, tokenizer, batch, most, drafting=lambda _: drafters), len(forwards)
    finally:
        handle.remove()


def require_equal(found: Sequence[GeneratedAnswer], wanted: Sequence[GeneratedAnswer]) -> None:
    for own, other in zip(found, wanted, strict=True):
        assert (own.text, own.token_ends, own.truncated) == (other.text, other.token_ends, other.truncated)
        assert own.log_probs == pytest.approx(other.log_probs, abs=1e-4)


@pytest.fixture(scope="module")
def plain(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch
) -> tuple[list[GeneratedAnswer], list[list[int]]]:
    """Answers that are written token by token, and their ids."""
    listener = Listens(bundle.processor.tokenizer)
    return generate_answers(lively, listener, questions, NEW_TOKENS), listener.heard


DRAFTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=4)


@settings(max_examples=10)
@given(first=DRAFTS, second=DRAFTS)
def test_drafts__change_no_token_and_no_probability(
    bundle: Bundle,
    lively: Qwen25VLWithDetection,
    questions: Batch,
    plain: tuple[list[GeneratedAnswer], list[list[int]]],
    first: list[tuple[int, int]],
    second: list[tuple[int, int]],
) -> None:
    """Whatever part of them is right, in each row another."""
    answers, ids = plain
    drafters = [*map(Foresees, ids, (first, second))]
    require_equal(drafted(lively, questions, bundle.processor.tokenizer, drafters)[0], answers)


def test_drafts__that_are_right_take_a_forward_each(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch
) -> None:
    tokenizer = bundle.processor.tokenizer
    answers = ids_written(lively, questions, tokenizer)
    _, forwards = drafted(lively, questions, tokenizer, [Foresees(row, [(4, 0)]) for row in answers])
    assert forwards == 1 + math.ceil((NEW_TOKENS - 1) / 5)
    _, forwards = drafted(lively, questions, tokenizer, [Foresees(row, [(0, 3)]) for row in answers])
    assert forwards == NEW_TOKENS


@pytest.mark.parametrize("ends_first", [0, 1])
@pytest.mark.parametrize("right", [1, 3, 99])
def test_drafts__an_answer_ends_with_its_end_in_the_middle_of_a_draft(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch, ends_first: int, right: int
) -> None:
    tokenizer = bundle.processor.tokenizer
    endless = ids_written(lively, questions, tokenizer)
    end = next(token for token in endless[ends_first][5:] if token not in endless[1 - ends_first])
    wanted = generate_answers(lively, Listens(tokenizer, end), questions, NEW_TOKENS)
    drafters = [Foresees(row, [(right, 2)]) for row in endless]
    found, _ = drafted(lively, questions, Listens(tokenizer, end), drafters)
    require_equal(found, wanted)
    assert [answer.truncated for answer in found] == [row == 1 - ends_first for row in range(2)]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_drafts__stop_at_the_most_tokens(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch, most: int
) -> None:
    tokenizer = bundle.processor.tokenizer
    endless = ids_written(lively, questions, tokenizer)
    found, _ = drafted(lively, questions, tokenizer, [Foresees(row, [(99, 0)]) for row in endless], most)
    require_equal(found, generate_answers(lively, tokenizer, questions, most))
    assert [len(answer.log_probs) for answer in found] == [most, most]


def test_drafts__a_token_that_rounding_could_turn_is_decided_by_the_row_alone(
    bundle: Bundle, lively: Qwen25VLWithDetection, questions: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token has a twin that is less likely by a hair; blocks are computed a little less exactly."""
    detector, tokenizer = copy.deepcopy(lively), bundle.processor.tokenizer
    size = detector.vlm.lm_head.out_features // 2
    with torch.no_grad():
        head = detector.vlm.lm_head.weight
        head[size : 2 * size] = head[:size] * (1 - 1e-6)
    wanted = ids_written(detector, questions, tokenizer)
    sound, alone = AnswersInProgress._forward, []
    noise = torch.Generator().manual_seed(0)

    def forward(self: AnswersInProgress, *given: Any, **settings: Any) -> torch.Tensor:
        logits = sound(self, *given, **settings)
        is_alone = logits.shape[:2].numel() == 1
        alone.append(is_alone)
        return logits if is_alone else logits + 2e-4 * torch.randn(logits.shape, generator=noise)

    monkeypatch.setattr(AnswersInProgress, "_forward", forward)
    drafters = [Foresees(row, [(4, 1)]) for row in wanted]
    listener = Listens(tokenizer)
    drafted(detector, questions, listener, drafters)
    assert listener.heard == wanted
    assert sum(alone) >= NEW_TOKENS
    monkeypatch.setattr("qwendet.inference.generation.ROUNDING", 0.0)
    listener = Listens(tokenizer)
    drafted(detector, questions, listener, [Foresees(row, [(4, 1)]) for row in wanted])
    assert listener.heard != wanted  # so the noise is enough to turn some
