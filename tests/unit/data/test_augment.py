"""Augmentation moves boxes with the pixels: by inversion, by drawn rectangles, by numbers."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qwendet.boxes import pairwise_iou
from qwendet.config.augment_steps import AugmentStep
from qwendet.config.load import build_config
from qwendet.config.schema import Config, DataConfig
from qwendet.data.augment import PRESETS, STEPS, Augmenter, Box, Scene, mosaic
from qwendet.data.directions import direction_problems
from qwendet.data.samples import DetectedObject
from qwendet.errors import ConfigError

GEOMETRIC = ("horizontal_flip", "vertical_flip", "quarter_turn", "crop", "scale")
COLOURS = ("red", "lime", "blue")


def scene(boxes: list[Box], size: tuple[int, int] = (120, 90)) -> Scene:
    """Filled rectangles on black, each in a colour that is its label."""
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    objects = []
    for (x1, y1, x2, y2), name in zip(boxes, COLOURS, strict=False):
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=name)
        objects.append(DetectedObject((x1, y1, x2, y2), name, area=4.0))
    return Scene(image, tuple(objects))


def seen_box(image: Image.Image, name: str, least: int = 128) -> Box:
    """Where a colour is, in whole pixels."""
    wanted = np.asarray(Image.new("RGB", (1, 1), name), dtype=int)[0, 0]
    near = np.abs(np.asarray(image, dtype=int) - wanted).max(-1) < least
    rows, columns = np.nonzero(near.any(1))[0], np.nonzero(near.any(0))[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def iou(one: Box, other: Box) -> float:
    return float(pairwise_iou(torch.tensor([one]).double(), torch.tensor([other]).double()))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Three columns, so that no rectangle hides another."""
    boxes: list[Box] = []
    for column in range(draw(st.integers(1, 3))):
        left = 40 * column + draw(st.integers(0, 12))
        top = draw(st.integers(0, 60))
        boxes.append((left, top, left + draw(st.integers(12, 26)), top + draw(st.integers(12, 29))))
    return scene(boxes)


@settings(max_examples=60, deadline=None)
@given(scenes(), st.sampled_from(GEOMETRIC), st.integers(0, 10**6))
def test_pixels__a_drawn_rectangle_is_still_under_its_box(before: Scene, name: str, seed: int) -> None:
    """To the pixel; a resized one has edges blurred over one."""
    step = AugmentStep(name=name, min_visible=0.5)  # type: ignore[arg-type]
    after = STEPS[name](step, before, Random(seed))
    for item in after.objects:
        found = seen_box(after.image, item.desc)
        assert max(abs(a - b) for a, b in zip(found, item.bbox_2d, strict=True)) <= (
            1 if name == "scale" else 0
        )


@settings(max_examples=60, deadline=None)
@given(
    scenes(),
    st.sampled_from(("horizontal_flip", "vertical_flip", "quarter_turn", "scale")),
    st.integers(0, 10**6),
)
def test_inversion__gives_the_original_boxes(before: Scene, name: str, seed: int) -> None:
    step = AugmentStep(name=name)  # type: ignore[arg-type]
    after = STEPS[name](step, before, Random(seed))
    width, height = after.image.size
    if name == "scale":
        back = after.seen((0, 0, width, height), before.image.size, 0.0)
    elif name == "quarter_turn":
        turns = Random(seed).randint(1, 3)
        forward = next(number for number in range(1000) if Random(number).randint(1, 3) == 4 - turns)
        back = STEPS[name](step, after, Random(forward))
    else:
        back = STEPS[name](step, after, Random(0))
    assert back.image.size == before.image.size
    pairs = zip(back.objects, before.objects, strict=True)
    assert min(iou(new.bbox_2d, old.bbox_2d) for new, old in pairs) >= 0.99
    if name != "scale":
        assert back.image.tobytes() == before.image.tobytes()


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(0, 10**6))
def test_crop__mapped_back_is_the_original_cut_at_the_window(before: Scene, seed: int) -> None:
    after = STEPS["crop"](AugmentStep(name="crop", min_visible=0.0), before, Random(seed))
    width, height = after.image.size
    spots = [
        (x, y)
        for x in range(before.image.width - width + 1)
        for y in range(before.image.height - height + 1)
        if before.image.crop((x, y, x + width, y + height)).tobytes() == after.image.tobytes()
    ]
    assert after.objects, "a window is around the centre of an object"
    wanted = {item.desc: item.bbox_2d for item in before.objects}
    assert any(
        all(
            iou(
                (a + x, b + y, c + x, d + y),
                (max(x1, x), max(y1, y), min(x2, x + width), min(y2, y + height)),
            )
            >= 0.99
            for item in after.objects
            for a, b, c, d in [item.bbox_2d]
            for x1, y1, x2, y2 in [wanted[item.desc]]
        )
        for x, y in spots
    )


def test_crop__drops_what_is_hardly_left_and_keeps_the_rest() -> None:
    before = scene([(10, 10, 30, 30), (40, 10, 60, 30)])
    after = before.seen((24, 0, 120, 90), (96, 90), 0.31)
    assert [(item.desc, item.bbox_2d) for item in after.objects] == [("lime", (16, 10, 36, 30))]
    kept = before.seen((24, 0, 120, 90), (96, 90), 0.3)
    assert kept.objects[0].bbox_2d == (0, 10, 6, 30)
    assert kept.objects[0].area is None
    assert before.seen((29.5, 0, 120, 90), (96, 90), 0.0).objects[0].desc == "lime", "less than a pixel"


def test_quarter_turn__is_counterclockwise() -> None:
    once = next(number for number in range(100) if Random(number).randint(1, 3) == 1)
    after = STEPS["quarter_turn"](AugmentStep(name="quarter_turn"), scene([(10, 20, 30, 50)]), Random(once))
    assert after.image.size == (90, 120)
    assert after.objects[0].bbox_2d == (20, 90, 50, 110)


@pytest.mark.parametrize("name", ["color", "blur", "jpeg"])
def test_photometric__changes_pixels_and_no_box(name: str) -> None:
    before = scene([(10, 10, 40, 40)])
    limits = (0.5, 0.6) if name == "color" else None  # brighter red is as red
    after = STEPS[name](AugmentStep(name=name, range=limits), before, Random(1))  # type: ignore[arg-type]
    assert after.objects == before.objects
    assert after.image.size == before.image.size
    assert after.image.tobytes() != before.image.tobytes()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_mosaic__has_four_scenes_with_their_boxes(seed: int) -> None:
    names = ("red", "lime", "blue", "yellow")
    four = []
    for name in names:
        image = Image.new("RGB", (100, 100))
        ImageDraw.Draw(image).rectangle((30, 30, 69, 69), fill=name)
        four.append(Scene(image, (DetectedObject((30, 30, 70, 70), name),)))
    after = mosaic(AugmentStep(name="mosaic", range=(0.45, 0.55)), four, Random(seed))
    assert after.image.size == (100, 100)
    assert {item.desc for item in after.objects} == set(names)
    for item in after.objects:
        found = seen_box(after.image, item.desc)
        assert max(abs(a - b) for a, b in zip(found, item.bbox_2d, strict=True)) <= 1.0


def test_flip__renames_labels_in_pairs() -> None:
    data = DataConfig(
        augment=(AugmentStep(name="horizontal_flip", probability=1.0),), augment_flips_labels={"red": "lime"}
    )
    before = scene([(10, 10, 30, 30), (50, 10, 70, 30), (80, 10, 110, 30)])

    def nobody(generator: Random) -> Scene:
        raise AssertionError

    after = Augmenter(data).scene(before, Random(0), nobody)
    assert [item.desc for item in after.objects] == ["lime", "red", "blue"]
    assert after.objects[0].bbox_2d == (90, 10, 110, 30)


@pytest.mark.parametrize("preset", ["light", "strong", "aerial"])
def test_preset__is_a_function_of_its_generator(preset: Any) -> None:
    augmenter, before = Augmenter(DataConfig(augment=preset)), scene([(10, 10, 40, 40)])
    made = [
        [augmenter.scene(before, Random(f"{seed}"), lambda _: before) for seed in range(20)] for _ in range(2)
    ]
    for one, other in zip(*made, strict=True):
        assert one.image.tobytes() == other.image.tobytes()
        assert one.objects == other.objects
    assert len({one.image.tobytes() for one in made[0]}) > 10
    assert any(one.image.tobytes() != before.image.tobytes() for one in made[0])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(("light", "strong", "aerial")),
    st.integers(2, 300),
    st.integers(2, 300),
    st.integers(0, 10**6),
)
def test_preset__boxes_stay_inside_images_of_any_size(
    preset: Any, width: int, height: int, seed: int
) -> None:
    generator = Random(seed)
    boxes: list[Box] = []
    for _ in range(8):
        left, top = generator.uniform(0, width - 1), generator.uniform(0, height - 1)
        boxes.append((left, top, generator.uniform(left + 0.5, width), generator.uniform(top + 0.5, height)))
    before = Scene(Image.new("RGB", (width, height)), tuple(DetectedObject(box, "red") for box in boxes))
    other = scene([(10, 10, 40, 40)])
    after = Augmenter(DataConfig(augment=preset)).scene(before, generator, lambda _: other)
    for item in after.objects:
        x1, y1, x2, y2 = item.bbox_2d
        assert 0 <= x1 < x2 <= after.image.width
        assert 0 <= y1 < y2 <= after.image.height


# Labels that name a direction


@pytest.mark.parametrize(
    "label",
    [
        "left hand",
        "Right-turn sign",
        "izquierda",
        "rechte Hand",
        "gauche",
        "левый",
        "左手",
        "ซ้าย",
        "बाएं हाथ",
        "→",
        "↘",
    ],
)
def test_flip__of_labels_with_a_direction_is_refused_unless_named(label: str) -> None:
    steps = PRESETS["light"]
    (problem,) = direction_problems(DataConfig(augment="light"), steps, [label, "cell"])
    assert problem.what == f"a flipped image no longer shows {label!r}"
    assert f"data.augment_flips_labels: {{{label}: OTHER LABEL}}" in problem.fix
    named = DataConfig(augment="light", augment_flips_labels={label: "cell"})
    assert list(direction_problems(named, steps, [label, "cell"])) == []


@pytest.mark.parametrize("label", ["upper jaw", "north", "↑", "left hand", "下"])
def test_turn__of_labels_with_a_direction_is_refused_unless_it_is_said_that_none_is_meant(label: str) -> None:
    steps = PRESETS["aerial"][1:3]
    found = list(direction_problems(DataConfig(), steps, [label]))
    assert [problem.what for problem in found] == [
        f"after {step} an image no longer shows {label!r}" for step in ("quarter_turn", "vertical_flip")
    ]
    assert list(direction_problems(DataConfig(augment_flips_labels={label: label}), steps, [label])) == []


@pytest.mark.parametrize("label", ["copyright", "bright light", "cell", "download", "laptop"])
def test_flip__of_other_labels_is_not(label: str) -> None:
    assert list(direction_problems(DataConfig(), PRESETS["aerial"], [label])) == []


def test_flips_labels__that_are_no_labels_are_named() -> None:
    settings = DataConfig(augment_flips_labels={"left": "rigth"})
    (problem,) = direction_problems(settings, (), ["left", "right"])
    assert (problem.what, problem.fix) == ("the label 'rigth' is not in the label set", "known: left, right")


# Settings


def config(**data: Any) -> Config:
    return build_config({"data": {"labels": ["a"]} | data}, "test")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"augment": "lite"}, "expected 'off', 'light', 'strong' or 'aerial', got 'lite'"),
        ({"augment": [{"name": "crop", "range": [0.9, 0.4]}]}, "the range of crop is [0.9, 0.4]"),
        ({"augment": [{"name": "jpeg", "range": [0, 50]}]}, "the range of jpeg is [0, 50]"),
        ({"augment": [{"name": "vertical_flip", "range": [0, 1]}]}, "vertical_flip takes no range"),
        ({"augment_flips_labels": {"a": "b", "b": "c"}}, "makes 'a' 'b', which does not become it again"),
    ],
)
def test_config__ranges_and_names_that_cannot_be_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**data)
    assert message in caught.value.problems[0].what


def test_config__off_is_a_word_and_steps_survive_the_manifest(tmp_path: Path) -> None:
    assert config(augment=False).data.augment == "off"
    made = config(augment=[{"name": "crop", "range": [0.5, 1.0], "probability": 1.0}])
    again = Config.model_validate_json(json.dumps(made.model_dump(mode="json")))
    assert again == made
    assert again.data.augment == (AugmentStep(name="crop", range=(0.5, 1.0), probability=1.0),)
