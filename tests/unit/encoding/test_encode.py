"""Encoding: the prompt, its spans and labels to the token, and the same tokens as the published processor."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from qwendet.config.schema import DataConfig
from qwendet.data.images import open_image
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.encoding.collate import IGNORED
from qwendet.encoding.encode import EncodedSample, Encoder
from qwendet.encoding.prompts import conversation, request_text
from qwendet.errors import DataError
from qwendet.families.qwen2_5_vl import QWEN2_5_VL
from qwendet.loader import Bundle
from qwendet.loading.processor import ImageTextProcessor, load_processor

Golden = Callable[[str, str], None]
Refusal = Callable[..., DataError]

LABELS = ("red circle", "blue square")
RED = DetectedObject((20.0, 40.0, 60.0, 90.0), "red circle")
BLUE = DetectedObject((1.5, 2.5, 30.0, 28.0), "blue square")
CROWD = DetectedObject((0.0, 0.0, 90.0, 70.0), "blue square", crowd=True)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Two teachers, one of them without objects, and a student with two objects and a crowd."""
    root = tmp_path_factory.mktemp("encode")
    generator = np.random.default_rng(0)
    for name, (width, height) in {"a.png": (112, 84), "b.png": (60, 60), "c.png": (100, 150)}.items():
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return Sample(
        student=Turn("c.png", (RED, CROWD, BLUE), root=root),
        teachers=(Turn("a.png", (BLUE,), root=root), Turn("b.png", (), root=root)),
        where="train.jsonl:3",
    )


def make_encoder(processor: ImageTextProcessor, labels: Sequence[str] = LABELS, **settings: Any) -> Encoder:
    return Encoder(processor, labels, DataConfig(**settings))


@pytest.fixture(scope="module")
def encoder(bundle: Bundle) -> Encoder:
    return make_encoder(bundle.processor)


@pytest.fixture(scope="module")
def trained(encoder: Encoder, sample: Sample) -> EncodedSample:
    return encoder.encode(sample, with_answer=True)


@pytest.fixture(scope="session")
def published(shared: Path) -> ImageTextProcessor:
    """Tokenizer, template and image processor of the published 7B model."""
    return load_processor(str(shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct"), QWEN2_5_VL, None, None)


def readable(encoder: Encoder, ids: torch.Tensor) -> str:
    """Decoded, a run of image tokens as its count."""
    text = ""
    run = 0
    for token in [*ids.tolist(), None]:
        if token == encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>"):
            run += 1
            continue
        text += f"<|image_pad|>*{run}" if run else ""
        run = 0
        text += "" if token is None else encoder.tokenizer.decode([token])
    return text


def spans_of(encoded: EncodedSample) -> list[tuple[int, int]]:
    return [*encoded.teacher_assistant_spans, *encoded.student_assistant_spans]


def parts(encoder: Encoder, encoded: EncodedSample) -> list[tuple[str, str]]:
    """The sequence cut at the spans' ends: who a part belongs to, and its text."""
    cuts = {0, len(encoded.input_ids), *(end for span in spans_of(encoded) for end in span)}
    owners = dict.fromkeys(encoded.teacher_assistant_spans, "teacher") | dict.fromkeys(
        encoded.student_assistant_spans, "student"
    )
    edges = sorted(cuts)
    return [
        (owners.get(part, "ignored"), readable(encoder, encoded.input_ids[slice(*part)]))
        for part in itertools.pairwise(edges)
    ]


# What is written


def test_encode__prompt_of_inference(encoder: Encoder, sample: Sample, golden: Golden) -> None:
    prompt = encoder.encode(sample, with_answer=False)
    golden("prompt_two_teachers.txt", readable(encoder, prompt.input_ids))


def test_encode__label_mask(encoder: Encoder, trained: EncodedSample, golden: Golden) -> None:
    lines = [f"{owner}: {json.dumps(text)}" for owner, text in parts(encoder, trained)]
    golden("label_mask_two_teachers.txt", "\n".join(lines) + "\n")


def test_encode__spans_are_the_answers_with_their_end_of_turn(
    encoder: Encoder, trained: EncodedSample
) -> None:
    assert [text for owner, text in parts(encoder, trained) if owner == "teacher"] == [
        '[{"bbox_2d": [2, 2, 30, 28], "label": "blue square"}]<|im_end|>',
        "[]<|im_end|>",
    ]
    assert parts(encoder, trained)[-1] == (
        "student",
        '[{"bbox_2d": [2, 2, 34, 26], "label": "blue square"}, '
        '{"bbox_2d": [22, 37, 67, 84], "label": "red circle"}]<|im_end|>',
    )


def test_encode__only_answers_become_labels(bundle: Bundle, trained: EncodedSample) -> None:
    labels = bundle.collator()([trained])["labels"][0]
    expected = torch.full_like(trained.input_ids, IGNORED)
    for start, end in spans_of(trained):
        expected[start:end] = trained.input_ids[start:end]
    assert torch.equal(labels, expected)
    end_of_turn = bundle.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (labels == end_of_turn).sum() == 3
    assert (trained.input_ids == end_of_turn).sum() == 7


def test_encode__inference_sends_the_prefix_of_training(
    encoder: Encoder, sample: Sample, trained: EncodedSample
) -> None:
    prompt = encoder.encode(sample, with_answer=False)
    start = trained.student_assistant_spans[0][0]
    assert torch.equal(prompt.input_ids, trained.input_ids[:start])
    assert torch.equal(prompt.mm_token_type_ids, trained.mm_token_type_ids[:start])
    assert torch.equal(prompt.pixel_values, trained.pixel_values)
    assert torch.equal(prompt.image_grid_thw, trained.image_grid_thw)
    assert prompt.student_image_start == trained.student_image_start
    assert prompt.teacher_assistant_spans == trained.teacher_assistant_spans
    assert (prompt.student_assistant_spans, len(prompt.boxes_cxcywh)) == ((), 0)


def test_encode__the_students_objects_do_not_reach_the_prompt(encoder: Encoder, sample: Sample) -> None:
    bare = dataclasses.replace(sample, student=dataclasses.replace(sample.student, objects=()))
    with_boxes = encoder.encode(sample, with_answer=False)
    assert torch.equal(encoder.encode(bare, with_answer=False).input_ids, with_boxes.input_ids)


def test_encode__an_unknown_label_of_the_student_is_no_matter_for_a_prompt(
    bundle: Bundle, encoder: Encoder, sample: Sample
) -> None:
    """The teachers know only blue squares; what the student's image holds is not asked for."""
    blue = make_encoder(bundle.processor, ("blue square",))
    assert blue.encode(sample, with_answer=False).student_assistant_spans == ()


def test_encode__windows_of_an_image_that_changes_are_those_of_the_new_one(
    encoder: Encoder, tmp_path: Path
) -> None:
    """The file is opened once for windows that follow one another, and again once it is another."""
    window = (28, 0, 84, 56)
    turn = Turn("large.png", (), root=tmp_path, window=window)
    for at, shade in enumerate((40, 200)):
        path = tmp_path / "large.png"
        Image.effect_noise((112, 84), shade).convert("RGB").save(path)
        os.utime(path, (at, at))
        with Image.open(path) as image:
            own = encoder.encode(Sample(turn), with_answer=False, images=[image.crop(window)])
        found = encoder.encode(Sample(turn), with_answer=False)
        assert torch.equal(found.pixel_values, own.pixel_values)
        assert found.image_size == (56, 56)


def test_encode__missing_file_of_a_window_is_named(
    encoder: Encoder, tmp_path: Path, refusal: Refusal
) -> None:
    turn = Turn("gone.png", (), root=tmp_path, window=(0, 0, 56, 56))
    error = refusal(encoder.encode, Sample(turn, where="train.jsonl:4"), with_answer=False)
    assert error.problems[0].where == "train.jsonl:4"
    assert "gone.png" in error.problems[0].what


def test_chat__a_client_that_sends_it_is_encoded_as_the_sample(encoder: Encoder, sample: Sample) -> None:
    prompt = encoder.encode(sample, with_answer=False)
    messages, images = encoder.chat(sample)
    sent = encoder.encode_chat(messages, images, "request 7")
    assert torch.equal(sent.input_ids, prompt.input_ids)
    assert torch.equal(sent.mm_token_type_ids, prompt.mm_token_type_ids)
    assert torch.equal(sent.pixel_values, prompt.pixel_values)
    assert torch.equal(sent.image_grid_thw, prompt.image_grid_thw)
    assert sent.student_image_start == prompt.student_image_start
    assert (sent.labels, sent.scored) == (prompt.labels, prompt.scored)
    assert (sent.image_size, sent.where) == (images[-1].size, "request 7")


def test_chat__images_are_resized_as_the_model_sees_them_or_as_displayed(
    encoder: Encoder, sample: Sample
) -> None:
    seen = encoder.encode(sample, with_answer=False).image_grid_thw
    resized, displayed = (encoder.chat(sample, resized=resized)[1] for resized in (True, False))
    patch = encoder.image_processor.patch_size
    assert [image.size for image in resized] == [(w * patch, h * patch) for _, h, w in seen.tolist()]
    assert [image.size for image in displayed] == [(112, 84), (60, 60), (100, 150)]
    own = [open_image(turn.image, turn.root, "") for turn in (*sample.teachers, sample.student)]
    assert [image.tobytes() for image in displayed] == [image.tobytes() for image in own]
    bicubic = own[-1].resize(resized[-1].size, Image.Resampling.BICUBIC)
    assert resized[-1].tobytes() == bicubic.tobytes()


def test_chat__asks_a_samples_own_labels_and_refuses_an_image_too_few(
    encoder: Encoder, sample: Sample
) -> None:
    student = dataclasses.replace(sample.student, labels=("blue square",))
    messages, images = encoder.chat(dataclasses.replace(sample, student=student))
    text = str(messages[-1])
    assert "blue square" in text
    assert "red circle" not in text
    with pytest.raises(ValueError, match="zip"):
        encoder.encode_chat(messages, images[:-1], "request 7")


@pytest.mark.parametrize(
    ("box", "written"),
    [
        ((99.9, 149.9, 100.0, 150.0), [111, 139, 112, 140]),
        ((99.2, 149.0, 100.0, 150.0), [111, 139, 112, 140]),
    ],
)
def test_encode__a_sliver_at_the_far_corner_is_answered_inside_the_image(
    encoder: Encoder, sample: Sample, box: tuple[float, float, float, float], written: list[int]
) -> None:
    """The displayed image has 100 × 150 pixels, the model's 112 × 140."""
    turn = dataclasses.replace(sample.student, objects=(DetectedObject(box, "red circle"),))
    encoded = encoder.encode(Sample(turn), with_answer=True)
    assert json.loads(answers_of(encoder, encoded)[-1]) == [{"bbox_2d": written, "label": "red circle"}]


def test_encode__targets_are_the_students_boxes_in_the_unit_square(trained: EncodedSample) -> None:
    expected = torch.tensor(
        [[40 / 100, 65 / 150, 40 / 100, 50 / 150], [15.75 / 100, 15.25 / 150, 28.5 / 100, 25.5 / 150]]
    )
    torch.testing.assert_close(trained.boxes_cxcywh, expected)
    assert trained.label_ids.tolist() == [0, 1]
    assert trained.image_size == (100, 150)
    assert trained.where == "train.jsonl:3"


def test_encode__the_students_image_is_the_last(trained: EncodedSample) -> None:
    is_image = trained.mm_token_type_ids.bool()
    assert trained.image_grid_thw.tolist() == [[1, 6, 8], [1, 4, 4], [1, 10, 8]]
    assert is_image.sum() == 12 + 4 + 20
    start = trained.student_image_start
    assert is_image[start : start + 20].all()
    assert not is_image[start - 1]
    assert not is_image[start + 20 :].any()


# The same tokens as the library that owns the truth


def answers_of(encoder: Encoder, encoded: EncodedSample) -> list[str]:
    end = "<|im_end|>"
    return [
        readable(encoder, encoded.input_ids[slice(*span)]).removesuffix(end) for span in spans_of(encoded)
    ]


def own_inputs(
    processor: ImageTextProcessor, sample: Sample, request: str, answers: Sequence[str], tail: str
) -> Any:
    """What ``apply_chat_template`` and the processor's own call make of the same turns."""
    messages = conversation(QWEN2_5_VL.system_prompt, [request] * (1 + len(answers)), answers)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [open_image(turn.image, turn.root, "") for turn in (*sample.teachers, sample.student)]
    return processor(text=[text + tail], images=images, return_tensors="pt")


def assert_same_inputs(encoded: EncodedSample, own: Any) -> None:
    assert encoded.input_ids.tolist() == own["input_ids"][0].tolist()
    assert encoded.mm_token_type_ids.tolist() == own["mm_token_type_ids"][0].tolist()
    assert torch.equal(encoded.image_grid_thw, own["image_grid_thw"])
    torch.testing.assert_close(encoded.pixel_values, own["pixel_values"], rtol=0, atol=0)


@pytest.mark.parametrize("source", ["bundle", "published"])
def test_encode__prompt_has_the_tokens_of_the_processors_own_call(
    source: str, sample: Sample, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(source)
    processor = found.processor if isinstance(found, Bundle) else found
    encoder = make_encoder(processor)
    encoded = encoder.encode(sample, with_answer=False)
    worded = request_text(DataConfig().request, LABELS)
    assert_same_inputs(encoded, own_inputs(processor, sample, worded, answers_of(encoder, encoded), ""))


@pytest.mark.parametrize("source", ["bundle", "published"])
@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        ("红色 圆圈", "cat"),
        ("🙂👩‍👩‍👧", "x"),
        ("a  b ", "24\" monitor's"),
        ("1,2]", "\\n"),
        ("caf\u00e9", " lead"),
    ],
    ids=["plain", "chinese", "emoji", "spaces and quotes", "json", "accents"],
)
def test_encode__whole_sequence_has_the_tokens_of_the_text_in_one_piece(
    source: str, labels: tuple[str, ...], sample: Sample, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(source)
    processor = found.processor if isinstance(found, Bundle) else found
    encoder = make_encoder(processor, labels)

    def renamed(turn: Turn) -> Turn:
        objects = [dataclasses.replace(item, desc=labels[LABELS.index(item.desc)]) for item in turn.objects]
        return dataclasses.replace(turn, objects=tuple(objects))

    sample = Sample(renamed(sample.student), tuple(renamed(turn) for turn in sample.teachers), sample.where)
    encoded = encoder.encode(sample, with_answer=True)
    *teachers, student = [
        processor.tokenizer.decode(encoded.input_ids[slice(*span)]).removesuffix("<|im_end|>")
        for span in spans_of(encoded)
    ]
    worded = request_text(DataConfig().request, labels)
    assert_same_inputs(encoded, own_inputs(processor, sample, worded, teachers, student + "<|im_end|>"))
    assert labels[0] in {item["label"] for item in json.loads(student)}


def test_encode__published_counts(published: ImageTextProcessor, tmp_path: Path) -> None:
    Image.new("RGB", (640, 480), "teal").save(tmp_path / "a.png")
    encoder = make_encoder(published, labels=("hi",), request="{labels}")
    encoded = encoder.encode(Sample(Turn("a.png", (), root=tmp_path)), with_answer=False)
    assert encoded.input_ids.shape == (413,)
    assert encoded.image_grid_thw.tolist() == [[1, 34, 46]]
    assert encoded.mm_token_type_ids.sum() == 391
    assert encoded.pixel_values.shape == (34 * 46, 3 * 2 * 14 * 14)


def test_encode__published_special_tokens_are_one_token_each(
    published: ImageTextProcessor, sample: Sample
) -> None:
    encoded = make_encoder(published).encode(sample, with_answer=True)
    ids = published.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|vision_start|>", "<|image_pad|>"])
    assert ids == [151645, 151652, 151655]
    assert [(encoded.input_ids == token).sum().item() for token in ids] == [7, 3, 36]


def test_token_counts__are_those_of_the_encoded_sample(
    encoder: Encoder, sample: Sample, trained: EncodedSample
) -> None:
    ((start, end),) = trained.student_assistant_spans
    sizes = [(112, 84), (60, 60), (100, 150)]
    assert encoder.token_counts(sample, sizes) == (len(trained.input_ids), end - start)


@pytest.mark.parametrize("size", [(900, 400), (20, 30)])
def test_token_counts__of_images_beyond_the_limits(
    encoder: Encoder, tmp_path: Path, size: tuple[int, int]
) -> None:
    """A larger one is made smaller, a smaller one larger."""
    Image.new("RGB", size, "teal").save(tmp_path / "a.png")
    sample = Sample(Turn("a.png", (), root=tmp_path))
    encoded = encoder.encode(sample, with_answer=True)
    assert encoder.token_counts(sample, [size])[0] == len(encoded.input_ids)
    assert encoded.mm_token_type_ids.sum() == {(900, 400): 55, (20, 30): 6}[size]


def test_token_counts__needs_a_size_for_each_image(encoder: Encoder, sample: Sample) -> None:
    with pytest.raises(ValueError, match="zip"):
        encoder.token_counts(sample, [(112, 84)])


def test_label_tokens__are_the_labels_own_text(encoder: Encoder) -> None:
    found = encoder.label_tokens(LABELS)
    assert {label: encoder.tokenizer.decode(ids) for label, ids in found.items()} == {
        own: own for own in LABELS
    }
    assert encoder.label_tokens(()) == {}


# What is refused


def test_encode__too_many_tokens(
    bundle: Bundle, sample: Sample, trained: EncodedSample, refusal: Refusal
) -> None:
    count = len(trained.input_ids)
    fits = make_encoder(bundle.processor, max_tokens=count)
    assert len(fits.encode(sample, with_answer=True).input_ids) == count
    error = refusal(make_encoder(bundle.processor, max_tokens=count - 1).encode, sample, with_answer=True)
    assert str(error) == (
        f"train.jsonl:3: {count} tokens, but data.max_tokens is {count - 1} (raise data.max_tokens, or lower "
        "data.max_pixels or the number of teachers; nothing is cut)"
    )


def test_encode__unknown_label(bundle: Bundle, sample: Sample, refusal: Refusal) -> None:
    error = refusal(make_encoder(bundle.processor, ("blue square",)).encode, sample, with_answer=True)
    assert str(error) == (
        "train.jsonl:3: the label 'red circle' is not in the label set (blue square) "
        "(add it to data.labels or correct it)"
    )


def test_encode__unknown_label_of_a_large_set_names_the_first_ten(
    bundle: Bundle, sample: Sample, refusal: Refusal
) -> None:
    labels = [f"label {number}" for number in range(12)]
    error = refusal(make_encoder(bundle.processor, labels).encode, sample, with_answer=True)
    assert f"is not in the label set ({', '.join(labels[:10])})" in str(error)


@pytest.mark.parametrize("with_answer", [True, False])
@pytest.mark.parametrize("part", ["student", "teacher"])
def test_encode__box_outside(
    encoder: Encoder, sample: Sample, refusal: Refusal, part: str, with_answer: bool
) -> None:
    outside = Turn(
        "b.png", (DetectedObject((10.0, 10.0, 61.0, 20.0), "red circle"),), root=sample.student.root
    )
    broken = Sample(outside, (), "x:1") if part == "student" else Sample(sample.student, (outside,), "x:1")
    (problem,) = refusal(encoder.encode, broken, with_answer=with_answer).problems
    assert problem.what == "objects[0].bbox_2d: [10.0, 10.0, 61.0, 20.0] leaves b.png, which is 60x60"
    assert problem.where == "x:1"


def test_encode__wrong_declared_size(encoder: Encoder, sample: Sample, refusal: Refusal) -> None:
    turn = dataclasses.replace(sample.student, width=640, height=480)
    error = refusal(encoder.encode, Sample(turn, (), "x:1"), with_answer=True)
    assert error.problems[0].what.startswith("the image 'c.png' is declared 640×480 but is displayed 100×150")
    assert error.problems[0].where == "x:1"


def test_encode__a_template_that_rewrites_earlier_turns(
    bundle: Bundle, sample: Sample, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = bundle.processor.tokenizer.chat_template
    shouting = template.replace("{{ part['text'] }}", "{{ part['text'] | upper }}")
    monkeypatch.setattr(bundle.processor.tokenizer, "chat_template", shouting)
    error = refusal(make_encoder(bundle.processor).encode, sample, with_answer=True)
    assert str(error) == (
        "chat template: the chat template rewrites the answers of earlier turns"
        " (use the published Qwen2.5-VL template)"
    )


@pytest.mark.parametrize("key", ["request", "system_prompt"])
def test_prompts__with_special_token_text_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=rf"data\.{key} holds special-token text: remove"):
        DataConfig(**{key: "Find {labels} <|image_pad|>"})
