"""``data.labels_per_request``: requests of few labels, drawn by seed, epoch and index; all at inference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.worlds import PRETRAIN
from qwendet.answers.diagnostics import AnswerFacts
from qwendet.config.schema import InferConfig
from qwendet.data.mixture import repeats
from qwendet.data.samples import Sample
from qwendet.encoding.dataset import TrainingSamples
from qwendet.inference.detections import Detection, Prediction, joined
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle

MANY = (*PRETRAIN.labels, *(f"object number {number}" for number in range(1203 - len(PRETRAIN.labels))))


def with_data(bundle: Bundle, infer: dict[str, Any] | None = None, **data: Any) -> Bundle:
    """The bundle with other settings of ``data`` and ``infer``."""
    config = bundle.config
    update = {
        "data": config.data.model_copy(update=data),
        "infer": config.infer.model_copy(update={"score_threshold": 0.0, **(infer or {})}),
    }
    return replace(bundle, config=config.model_copy(update=update))


def training(bundle: Bundle, **data: Any) -> TrainingSamples:
    own = with_data(bundle, **data)
    return TrainingSamples(own.config, own.encoder())


def asked(samples: TrainingSamples) -> list[tuple[str, ...]]:
    return [samples[index].labels for index in range(len(samples))]


def test_requests__change_with_the_epoch_and_with_nothing_else(bundle: Bundle) -> None:
    one, other = (training(bundle, labels=MANY, labels_per_request=20) for _ in range(2))
    first = asked(one)
    other.set_epoch(3)
    assert [len(labels) for labels in first] == [20] * len(one)
    assert asked(other) != first
    other.set_epoch(0)
    assert list(reversed([other[index].labels for index in reversed(range(len(other)))])) == first
    for index, labels in enumerate(first):
        objects = one.samples[index].student.objects
        assert {item.desc for item in objects} <= set(labels)
        assert [labels[at] for at in one[index].label_ids] == [item.desc for item in objects]


def test_requests__with_augmentation_name_what_is_left_in_the_image(bundle: Bundle) -> None:
    samples = training(bundle, labels=MANY, labels_per_request=14, augment="strong")
    for epoch in range(3):
        samples.set_epoch(epoch)
        for index in range(len(samples)):
            item = samples[index]
            assert len(item.labels) == 14
            moved = samples.augmented(samples._with_teachers(index), index)
            present = [found.desc for found in moved.student.objects]
            assert [item.labels[at] for at in item.label_ids] == present


def test_repeat_rare__takes_samples_again_with_questions_of_their_own(bundle: Bundle) -> None:
    once = training(bundle, labels=MANY, labels_per_request=20)
    samples = training(bundle, labels=MANY, labels_per_request=20, repeat_rare=1.0)
    counts = [samples.indices.count(index) for index in range(4)]
    shown = [{item.desc for item in sample.student.objects} for sample in once.samples]
    assert counts == repeats(shown, 1.0, bundle.config.train.seed)
    most = counts.index(max(counts))
    assert len(samples) == sum(counts)
    assert counts[most] > 1
    assert [samples[index].labels for index in range(4)] == asked(once)
    again = [samples[index] for index in range(len(samples)) if samples.indices[index] == most]
    assert len({item.labels for item in again}) == len(again) == counts[most]
    assert len({item.where for item in again}) == 1


def test_tokens__of_1203_labels_fit_what_fits_the_number_asked(bundle: Bundle) -> None:
    few = training(bundle, labels=MANY, labels_per_request=20)
    most = max(len(few[index].input_ids) for index in range(len(few)))
    limited = training(bundle, labels=MANY, labels_per_request=20, max_tokens=most + 40)
    assert max(len(limited[index].input_ids) for index in range(len(limited))) == most
    whole = training(bundle, labels=MANY, max_tokens=10**6)
    assert min(len(whole[index].input_ids) for index in range(len(whole))) > 4 * most


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, ...]]]:
    """Labels of the requests of each batch that is predicted."""
    seen: list[list[tuple[str, ...]]] = []
    sound = Predictor.predict_encoded

    def predict(self: Predictor, samples: Any, encoded: Any, sources: Any) -> Any:
        seen.append([item.labels for item in encoded])
        return sound(self, samples, encoded, sources)

    monkeypatch.setattr(Predictor, "predict_encoded", predict)
    return seen


def test_head__takes_one_forward_for_all_labels(
    bundle: Bundle, lessons: list[Sample], batches: list[list[tuple[str, ...]]]
) -> None:
    bare = [replace(lesson, teachers=()) for lesson in lessons]
    chunked = list(Predictor(with_data(bundle, labels_per_request=5)).predict(bare, "head"))
    assert batches == [[PRETRAIN.labels[:5]] * 4]
    together = list(Predictor(with_data(bundle)).predict(bare, "head"))
    for found, expected in zip(chunked, together, strict=True):
        assert {item.desc for item in found.detections} - set(PRETRAIN.labels[:5])
        scores = [item.score for item in expected.detections]
        assert [item.score for item in found.detections] == pytest.approx(scores, abs=1e-5)


def test_head__behind_demonstrations_is_asked_as_it_was_trained(
    bundle: Bundle, lessons: list[Sample], batches: list[list[tuple[str, ...]]]
) -> None:
    """They show the labels of one request; so each has a forward of its own."""
    Predictor(with_data(bundle, labels_per_request=5)).predict_all(lessons[:1], "head")
    assert batches == [[PRETRAIN.labels[:5], PRETRAIN.labels[5:10], PRETRAIN.labels[10:]]]


def test_text__is_asked_in_chunks_and_answers_each_label_at_most_once(
    bundle: Bundle, lessons: list[Sample], batches: list[list[tuple[str, ...]]]
) -> None:
    bare = [replace(lesson, teachers=()) for lesson in lessons[:2]]
    settings = {"constrained": True, "max_new_tokens": 60, "batch_size": 4}
    predictor = Predictor(with_data(bundle, settings, labels_per_request=5))
    both = list(predictor.predict(bare, "both"))
    chunks = [PRETRAIN.labels[:5], PRETRAIN.labels[5:10], PRETRAIN.labels[10:]]
    assert batches == [[*chunks, chunks[0]], chunks[1:]]
    head = list(predictor.predict(bare, "head"))
    for found, expected in zip(both, head, strict=True):
        assert found.answer is not None
        assert found.answer.text.count("[{") + found.answer.text.count("[]") >= 3
        assert found.answer.unknown_labels == 0
        by_head = [item for item in found.detections if item.source == "head"]
        assert [item.desc for item in by_head] == [item.desc for item in expected.detections]


def test_joined__keeps_the_best_of_each_source_and_adds_what_is_said_of_answers() -> None:
    def part(*scores: float, source: Any = "text", rejected: int = 1) -> Prediction:
        found = tuple(Detection((1, 2, 3, 4), "cat", score, source) for score in scores)
        return Prediction(
            "a.png", 9, 9, found, rejected, AnswerFacts("[]", False, rejected > 1, 2, 1, 0, 1, 0)
        )

    three = InferConfig(max_detections=3)
    whole = joined([part(0.9, 0.2), part(0.5, 0.4, rejected=2)], three, head_of_first=True)
    assert [item.score for item in whole.detections] == [0.9, 0.5, 0.4]
    assert (whole.rejected, whole.answer) == (3, AnswerFacts("[]\n[]", False, True, 4, 2, 0, 2, 0))
    heads = [part(0.3, source="head"), part(0.8, source="head")]
    assert [item.score for item in joined(heads, three, head_of_first=True).detections] == [0.3]
    assert [item.score for item in joined(heads, three, head_of_first=False).detections] == [0.8, 0.3]


def test_answers__to_samples_of_other_labels_stay_among_their_own(
    bundle: Bundle, lessons: list[Sample]
) -> None:
    """Head and constrained text, in one batch, with letters that no label of the set has."""
    student = lessons[1].student
    one = Sample(replace(student, labels=("a purple hexagon", "Žába"), objects=()))
    other = Sample(replace(student, labels=("the cat left of the door",), objects=()))
    predictor = Predictor(with_data(bundle, {"constrained": True, "max_new_tokens": 80}))
    predictions = list(predictor.predict([one, other, Sample(replace(student, objects=()))], "both"))
    for prediction, own in zip(
        predictions, (*(s.student.labels for s in (one, other)), PRETRAIN.labels), strict=True
    ):
        assert {item.desc for item in prediction.detections if item.source == "head"} <= set(own or ())
        assert {item.desc for item in prediction.detections if item.source == "text"} <= set(own or ())
        assert prediction.detections
        assert prediction.answer is not None
        assert prediction.answer.unknown_labels == 0
