"""The order of samples, the cap of each source, and asked labels against those that were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.worlds import PRETRAIN
from qwendet.answers.format import format_answer
from qwendet.data.samples import DetectedObject, Sample, SampleFile
from qwendet.encoding.encode import EncodedSample
from qwendet.evaluation.validation import Validation, validate
from qwendet.inference.asked import tell_near_misses
from qwendet.inference.generation import GeneratedAnswer
from qwendet.inference.predictor import Predictor
from qwendet.loader import Bundle

TRAINED = ("cyan cross", "orange star", "缺陷 螺丝")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("cyan cros", "cyan cross"), ("Orange star", "orange star"), ("缺陷螺丝", "缺陷 螺丝")],
)
def test_tell_near_misses__names_the_label_that_was_meant(
    asked: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    tell_near_misses([asked], TRAINED)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"the label {asked!r} was not trained; did you mean {meant!r}?"


def test_tell_near_misses__says_nothing_of_trained_and_of_new_labels(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tell_near_misses([*TRAINED, "purple star", "zebra"], TRAINED)
    assert caplog.records == []


@pytest.fixture
def predictor(bundle: Bundle) -> Predictor:
    infer = bundle.config.infer.model_copy(update={"batch_size": 4, "score_threshold": 0.0})
    return Predictor(replace(bundle, config=bundle.config.model_copy(update={"infer": infer})))


def test_predict_all__batches_are_of_similar_length_and_the_longest_come_first(
    predictor: Predictor, scenes_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = list(SampleFile(scenes_file))
    shapes: list[tuple[int, int]] = []
    sound = predictor.predict_encoded

    def predict(batch: Any, encoded: Sequence[EncodedSample], sources: Any) -> Any:
        lengths = [len(sample.input_ids) for sample in encoded]
        shapes.append((sum(lengths), max(lengths) * len(lengths)))
        return sound(batch, encoded, sources)

    monkeypatch.setattr(predictor, "predict_encoded", predict)
    in_order = list(predictor.predict(samples))
    unsorted, shapes[:] = list(shapes), []
    together = predictor.predict_all(samples)
    assert [padded for _, padded in shapes] == sorted((padded for _, padded in shapes), reverse=True)
    assert padding_share(shapes) < padding_share(unsorted) / 3
    assert [item.image for item in together] == [sample.student.image for sample in samples]
    for found, expected in zip(together, in_order, strict=True):
        best, wanted = found.detections[0], expected.detections[0]
        assert (best.desc, best.score) == (wanted.desc, pytest.approx(wanted.score, abs=1e-5))
        assert best.bbox_2d == pytest.approx(wanted.bbox_2d, abs=0.02)


def padding_share(shapes: list[tuple[int, int]]) -> float:
    return 1 - sum(real for real, _ in shapes) / sum(padded for _, padded in shapes)


def test_num_tokens__orders_prompts_with_demonstrations(predictor: Predictor, lessons: list[Sample]) -> None:
    encoded = [predictor.encoder.encode(sample, with_answer=False) for sample in lessons]
    by_length = sorted(range(len(lessons)), key=lambda index: len(encoded[index].input_ids))
    assert sorted(range(len(lessons)), key=lambda index: predictor._num_tokens(lessons[index])) == by_length


def surer_than_the_head(objects: Sequence[DetectedObject]) -> GeneratedAnswer:
    """A text answer whose every token has the probability 1."""
    text = format_answer(objects)
    return GeneratedAnswer(text, tuple(range(1, len(text) + 1)), (0.0,) * len(text), truncated=False)


def found_by_the_head(bundle: Bundle, sample: Sample) -> Sample:
    """The sample as if the head's best three detections were its objects."""
    (prediction,) = Predictor(bundle).predict([sample], "head")
    objects = tuple(DetectedObject(item.bbox_2d, item.desc) for item in prediction.detections[:3])
    return replace(sample, student=replace(sample.student, objects=objects))


def test_both__each_source_finds_and_scores_what_it_does_alone(
    bundle: Bundle, scenes_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six boxes are the most: the answers hold seven surer ones, which left no room for the head's."""
    samples = [found_by_the_head(bundle, sample) for sample in list(SampleFile(scenes_file))[:3]]
    boxes = [*samples[0].student.objects[:1]]
    boxes += [DetectedObject((4 * at, 4, 4 * at + 20, 30), PRETRAIN.labels[at]) for at in range(6)]
    answer = surer_than_the_head(boxes)
    monkeypatch.setattr(
        "qwendet.inference.predictor.generate_answers",
        lambda detector, tokenizer, batch, *_: [answer] * len(batch["num_tokens"]),
    )

    def measured(mode: str) -> Validation:
        settings = {"mode": mode, "max_detections": 6, "score_threshold": 0.0, "draft": "off"}
        infer = bundle.config.infer.model_copy(update=settings)
        return validate(replace(bundle, config=bundle.config.model_copy(update={"infer": infer})), samples)

    both, head, text = map(measured, ("both", "head", "text"))
    assert both.metrics == head.metrics | text.metrics
    assert head.metrics["head/AP"] > 0.9
    assert text.metrics["text/AP50"] > 0
    for together, by_head, by_text in zip(both.predictions, head.predictions, text.predictions, strict=True):
        own = {
            source: tuple(item for item in together.detections if item.source == source)
            for source in ("head", "text")
        }
        assert own == {"head": by_head.detections, "text": by_text.detections}
        assert [len(items) for items in own.values()] == [6, 6]
        scores = [item.score for item in together.detections]
        assert scores == sorted(scores, reverse=True)
