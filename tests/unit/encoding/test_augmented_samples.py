"""Augmented training samples: drawn by seed, epoch and index, in training alone; answer and head agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwendet.answers.format import parse_answer
from qwendet.boxes import cxcywh_to_xyxy
from qwendet.config.augment_steps import AugmentStep
from qwendet.config.schema import Config, DataConfig
from qwendet.data.images import image_size
from qwendet.encoding.dataset import TrainingSamples
from qwendet.encoding.encode import EncodedSample
from qwendet.loader import Bundle

Make = Callable[..., TrainingSamples]
ALWAYS = (
    AugmentStep(name="horizontal_flip", probability=1.0),
    AugmentStep(name="crop", probability=1.0, range=(0.5, 0.9)),
    AugmentStep(name="scale", probability=1.0, range=(1.1, 1.4)),
)


@pytest.fixture
def make(bundle: Bundle) -> Make:
    def make(steps: Any, seed: int = 0, **data: Any) -> TrainingSamples:
        config: Config = bundle.config
        section: DataConfig = config.data.model_copy(update={"augment": steps, **data})
        train = config.train.model_copy(update={"seed": seed})
        config = config.model_copy(update={"data": section, "train": train})
        encoder = bundle.encoder()
        encoder.settings = section
        return TrainingSamples(config, encoder)

    return make


def pixels(samples: TrainingSamples) -> list[bytes]:
    return [samples[index].pixel_values.numpy().tobytes() for index in range(len(samples))]


def test_pixels_and_boxes__depend_on_seed_epoch_and_index(make: Make) -> None:
    first = pixels(make("strong"))
    torch.manual_seed(3)
    assert pixels(make("strong")) == first
    assert pixels(make("strong", seed=1)) != first
    later = make("strong")
    later.set_epoch(1)
    assert pixels(later) != first
    later.set_epoch(0)
    assert pixels(later) == first
    assert pixels(make("off")) != first


def test_inference__sees_images_as_they_are(make: Make, bundle: Bundle) -> None:
    augmented = make(ALWAYS)
    for index in range(len(augmented)):
        sample = augmented.sample(index)
        assert sample.student.pixels is None
        found = augmented.encoder.encode(sample, with_answer=False)
        wanted = bundle.encoder().encode(sample, with_answer=False)
        assert torch.equal(found.pixel_values, wanted.pixel_values)
        assert torch.equal(found.input_ids, wanted.input_ids)


def answers(item: EncodedSample, samples: TrainingSamples) -> list[list[tuple[tuple[float, ...], str]]]:
    """What each assistant's turn says, teachers first."""
    texts = [
        samples.encoder.tokenizer.decode(item.input_ids[start:end])
        for start, end in (*item.teacher_assistant_spans, *item.student_assistant_spans)
    ]
    return [[(each.bbox_2d, each.desc) for each in parse_answer(text).objects] for text in texts]


def test_answer_and_head__have_the_same_moved_boxes_teachers_too(make: Make) -> None:
    """Of each image the moved boxes, in pixels of the image that the model sees: to a pixel."""
    samples = make(ALWAYS)
    patch = samples.encoder.image_processor.patch_size
    seen = 0
    for index in range(len(samples)):
        plain, item = samples.sample(index), samples[index]
        moved = samples.augmented(plain, index)
        turns = (*moved.teachers, moved.student)
        for turn, was in zip(turns, (*plain.teachers, plain.student), strict=True):
            assert turn.declared_size != image_size(was.image, was.root, "")
        for turn, grid, said in zip(turns, item.image_grid_thw.tolist(), answers(item, samples), strict=True):
            size = grid[2] * patch, grid[1] * patch
            assert turn.declared_size is not None
            scale = [of / to for of, to in zip(size, turn.declared_size, strict=True)] * 2
            wanted = [
                [number * factor for number, factor in zip(each.bbox_2d, scale, strict=True)]
                for each in turn.objects
            ]
            assert len(said) == len(wanted)
            for box, _ in said:
                assert min(max(abs(a - b) for a, b in zip(box, one, strict=True)) for one in wanted) <= 1
                seen += 1
        boxes = cxcywh_to_xyxy(item.boxes_cxcywh) * torch.tensor([*moved.student.declared_size] * 2)  # type: ignore[misc]
        truth = torch.tensor([each.bbox_2d for each in moved.student.objects]).reshape(-1, 4)
        torch.testing.assert_close(boxes, truth, rtol=0, atol=1e-3)
        assert item.image_size == moved.student.declared_size
    assert seen > 6


def test_images_of_a_sample__are_moved_each_for_itself(make: Make) -> None:
    samples = make((AugmentStep(name="crop", probability=1.0),))
    with_two = samples.augmented(samples.sample(0), 0)
    plain = samples.sample(0)
    kept = [
        turn.pixels.width / image_size(was.image, was.root, "")[0]
        for turn, was in zip(
            (*with_two.teachers, with_two.student), (*plain.teachers, plain.student), strict=True
        )
        if turn.pixels is not None
    ]
    assert len({round(share, 2) for share in kept}) == 3


def test_too_long__a_sample_is_taken_as_it_is(make: Make) -> None:
    plain = make("off")
    tokens = [len(plain[index].input_ids) for index in range(len(plain))]
    longest = max(range(len(plain)), key=tokens.__getitem__)
    steps = (AugmentStep(name="scale", probability=1.0, range=(3.0, 3.0)),)
    free, bound = make(steps), make(steps, max_tokens=tokens[longest])
    assert len(free[longest].input_ids) > tokens[longest]
    assert torch.equal(bound[longest].pixel_values, plain[longest].pixel_values)


def test_more_objects_than_queries__a_sample_is_taken_as_it_is(make: Make) -> None:
    samples = make((AugmentStep(name="mosaic", probability=1.0, min_visible=0.0),))
    detection = samples.config.detection.model_copy(update={"num_queries": 1})
    few = [index for index in range(len(samples)) if samples.sample(index).student.objects]
    moved = [samples.augmented(samples.sample(index), index) for index in few]
    most = max(moved, key=lambda sample: len(sample.student.objects))
    index = few[moved.index(most)]
    assert len(most.student.objects) > len(samples.sample(index).student.objects)
    samples.config = samples.config.model_copy(update={"detection": detection})
    assert samples.augmented(samples.sample(index), index) == samples.sample(index)
