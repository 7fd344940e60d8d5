"""Samples that say what is asked: request, answer, targets and loss are of those labels alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.worlds import PRETRAIN
from qwendet.answers.format import parse_answer
from qwendet.config.schema import LossConfig
from qwendet.data.samples import Sample
from qwendet.encoding.collate import Batch
from qwendet.encoding.encode import EncodedSample
from qwendet.loader import Bundle
from qwendet.model.detector import Qwen25VLWithDetection
from qwendet.model.head import NOT_ASKED
from qwendet.model.losses import Losses, LossManager, step_counts
from qwendet.model.matching import Targets

WEIGHTS = LossConfig(lm_loss_weight=0.9, teacher_loss_weight=0.3, student_loss_weight=1.1)


def asked(sample: Sample, *labels: str) -> Sample:
    """The sample, asked about labels of its own beside those of its objects."""
    present = [item.desc for item in sample.student.objects]
    own = tuple(dict.fromkeys([*labels, *present]))
    return replace(sample, student=replace(sample.student, labels=own))


@pytest.fixture(scope="module")
def apart(lessons: list[Sample]) -> list[Sample]:
    """Each lesson asked about other labels; the last about the label set."""
    questions = (("a purple hexagon",), ("blue ring", "the cat left of the door"), ("red square",))
    return [*(asked(lesson, *more) for lesson, more in zip(lessons, questions, strict=False)), lessons[3]]


@pytest.fixture(scope="module")
def items(bundle: Bundle, apart: list[Sample]) -> list[EncodedSample]:
    encoder = bundle.encoder()
    return [encoder.encode(sample, with_answer=True) for sample in apart]


def test_encode__asks_and_answers_what_the_sample_says(
    bundle: Bundle, apart: list[Sample], items: list[EncodedSample]
) -> None:
    tokenizer = bundle.processor.tokenizer
    for sample, item in zip(apart, items, strict=True):
        labels = sample.student.labels or PRETRAIN.labels
        text = tokenizer.decode(item.input_ids)
        assert text.count(f"Locate every {', '.join(labels)}. Output") == 1 + len(sample.teachers)
        assert (item.labels, tuple(item.scored)) == (labels, labels)
        assert [tokenizer.decode(tokens) for tokens in item.scored.values()] == list(labels)
        assert [labels[at] for at in item.label_ids] == [one.desc for one in sample.student.objects]
        shown = zip(sample.teachers, item.teacher_assistant_spans, strict=True)
        for turn, (start, end) in shown:
            found = parse_answer(tokenizer.decode(item.input_ids[start:end])).objects
            assert sorted(one.desc for one in found) == sorted(
                o.desc for o in turn.objects if o.desc in labels
            )


def test_encode__a_demonstration_that_says_what_it_is_asked_keeps_its_own_question(
    bundle: Bundle, lessons: list[Sample]
) -> None:
    sample = asked(lessons[0], "a purple hexagon")
    own = tuple(item.desc for item in sample.teachers[0].objects[:1])
    shown = replace(sample.teachers[0], labels=own, objects=sample.teachers[0].objects[:1])
    item = bundle.encoder().encode(replace(sample, teachers=(shown, *sample.teachers[1:])), with_answer=True)
    requests = bundle.processor.tokenizer.decode(item.input_ids).split("Locate every ")[1:]
    student = sample.student.labels or ()
    assert [text.split(". Output")[0] for text in requests] == [
        ", ".join(own), ", ".join(student), ", ".join(student),
    ]  # fmt: skip


def test_collate__a_batch_has_the_labels_of_all_and_knows_whose_they_are(
    bundle: Bundle, items: list[EncodedSample]
) -> None:
    batch = bundle.collator()(items[:3])
    texts = batch["label_texts"]
    assert len(texts) == len(set(texts)) == batch["label_input_ids"].shape[0] == batch["asked"].shape[1]
    assert set(texts) == set().union(*(item.labels for item in items[:3]))
    assert len(texts) < len(PRETRAIN.labels)
    for row, item in enumerate(items[:3]):
        own = [texts[at] for at in batch["asked"][row].nonzero().flatten()]
        assert set(own) == set(item.labels)
    wanted = [item.labels[at] for item in items[:3] for at in item.label_ids]
    assert [texts[at] for at in batch["target_label_ids"]] == wanted


@pytest.mark.parametrize("packing", [False, True])
def test_labels_of_the_set__train_bitwise_as_none(
    bundle: Bundle, lessons: list[Sample], packing: bool
) -> None:
    encoder, collator = bundle.encoder(), bundle.collator(packing=packing)
    named = [replace(one, student=replace(one.student, labels=PRETRAIN.labels)) for one in lessons]
    found, expected = (
        collator([encoder.encode(sample, with_answer=True) for sample in samples])
        for samples in (named, lessons)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(value, found[name]) if torch.is_tensor(value) else value == found[name]
        assert same, name


def losses(detector: Qwen25VLWithDetection, batch: Batch, step: torch.Tensor) -> Losses:
    output = detector(batch)
    targets = Targets(batch["target_boxes_cxcywh"], batch["target_label_ids"], batch["num_boxes"])
    return LossManager(WEIGHTS, one_to_many=3)(output.tokens, output.head, targets, step)


@pytest.mark.usefixtures("float64_is_kept")
def test_loss__of_samples_with_other_labels_is_the_sum_of_each_alone(
    bundle: Bundle, detector64: Qwen25VLWithDetection, items: list[EncodedSample]
) -> None:
    """Gradients, too: nothing of a sample depends on what others of its batch are asked."""
    collator = bundle.collator()
    batch = collator(items)
    step, parameters = step_counts([batch]), list(detector64.head.parameters())
    together = losses(detector64, batch, step)
    alone = [losses(detector64, collator([item]), step) for item in items]
    for name, term in together.terms.items():
        assert sum(one.terms[name].item() for one in alone) == pytest.approx(term.item(), rel=1e-9), name
    found, expected = (
        torch.autograd.grad(total, parameters, allow_unused=True)
        for total in (together.total, sum(one.total for one in alone))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * other.abs().max().item() + 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_not_asked__has_no_probability_and_no_loss_in_any_type(dtype: torch.dtype) -> None:
    logit = torch.tensor([NOT_ASKED], dtype=dtype, requires_grad=True)
    assert logit.sigmoid().item() == 0
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.zeros_like(logit))
    loss.backward()
    assert (loss.item(), logit.grad.item()) == (0, 0)
