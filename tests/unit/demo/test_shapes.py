"""Generated scenes: repeatable, boxes tight, labels true, worlds apart, files readable."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks import worlds
from benchmarks.worlds import PRETRAIN
from qwendet.data.samples import SampleFile
from qwendet.demo import scenery, shapes
from qwendet.demo.shapes import DEMO, Scene, World, draw_scene, write_dataset
from qwendet.errors import DataError
from qwendet.progress import Advance, shown_by

WORLDS = [pytest.param(PRETRAIN, id="pretrain"), pytest.param(DEMO, id="demo")]
OUTLINES = sorted({**PRETRAIN.outlines, **DEMO.outlines}.items())


def draw_scenes(world: World, count: int) -> list[Scene]:
    return [draw_scene(world, np.random.default_rng([5, index])) for index in range(count)]


def plain(world: World) -> World:
    """The world with nothing but whole, sharp, opaque objects on one tone."""
    flat = (worlds.flat,)
    return replace(world, backgrounds=flat, opacity=(1, 1), softness=0, crowds=0, distractors=0, wear=0)


def changed_mask(scene: Scene, share: float) -> NDArray[np.bool_]:
    """Pixels that differ from the most frequent colour by ``share`` of the largest difference."""
    pixels = np.asarray(scene.image).astype(int)
    ((background, _),) = Counter(map(tuple, pixels.reshape(-1, 3).tolist())).most_common(1)
    difference = np.abs(pixels - background).sum(axis=2)
    return np.asarray(difference > share * difference.max())


def exact_coverage(polygons: scenery.Polygons, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Coverage by the even-odd rule at 8×8 points a pixel: a second renderer, slow and independent."""
    height, width = shape
    x, y = np.meshgrid((np.arange(width * 8) + 0.5) / 8, (np.arange(height * 8) + 0.5) / 8)
    inside = np.zeros(x.shape, dtype=bool)
    for polygon in polygons:
        for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            crosses = (y1 > y) != (y2 > y)
            inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1 if y2 != y1 else 1))
    return np.asarray(inside.reshape(height, 8, width, 8).mean(axis=(1, 3)))


@pytest.mark.parametrize("outline", [pytest.param(draw, id=name) for name, draw in OUTLINES])
def test_stencil__equals_an_exact_rendering(outline: scenery.Outline) -> None:
    rng = np.random.default_rng(0)
    for radius_px in (5.0, 9.5, 24.0):
        polygons = scenery.transform(outline(rng), radius_px, rng.uniform(0.75, 1.3), rng.uniform(0, 6))
        mask = scenery.stencil(polygons, 0.0)
        low = np.floor(polygons[0].min(axis=0)) - 1
        exact = exact_coverage(tuple(polygon - low for polygon in polygons), mask.shape)
        assert np.abs(mask - exact).mean() < 0.3 / radius_px
        box = shapes.tight_box(mask >= shapes.VISIBLE_COVERAGE)
        exact_box = shapes.tight_box(exact >= shapes.VISIBLE_COVERAGE)
        assert np.abs(np.subtract(box, exact_box)).max() <= 1


def test_stencil__blur_keeps_the_box() -> None:
    polygons = scenery.transform(worlds.circle(np.random.default_rng(0)), 15, 1.2, 0.3)
    sharp, soft = (
        shapes.tight_box(scenery.stencil(polygons, softness_px) >= shapes.VISIBLE_COVERAGE)
        for softness_px in (0.0, 1.5)
    )
    sizes = [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in (sharp, soft)]
    assert np.abs(np.subtract(sizes[0], sizes[1])).max() <= 2


def test_ring__has_a_hole() -> None:
    mask = scenery.stencil(scenery.transform(worlds.ring(np.random.default_rng(0)), 12, 1, 0), 0.0)
    assert mask[mask.shape[0] // 2, mask.shape[1] // 2] == 0
    assert mask.max() == 1


@pytest.mark.parametrize("world", WORLDS)
def test_draw_scene__box_is_tight_around_what_changed(world: World) -> None:
    scenes = [scene for scene in draw_scenes(plain(world), 120) if len(scene.objects) == 1]
    assert len(scenes) > 15
    for scene in scenes:
        x1, y1, x2, y2 = scene.objects[0].bbox_2d
        outer, inner = (shapes.tight_box(changed_mask(scene, share)) for share in (0.02, 0.25))
        assert x1 - 1 <= outer[0] <= inner[0] <= x1 + 2, scene.objects
        assert y1 - 1 <= outer[1] <= inner[1] <= y1 + 2, scene.objects
        assert x2 - 2 <= inner[2] <= outer[2] <= x2 + 1, scene.objects
        assert y2 - 2 <= inner[3] <= outer[3] <= y2 + 1, scene.objects


@pytest.mark.parametrize("world", WORLDS)
def test_draw_scene__colour_is_the_one_in_the_label(world: World) -> None:
    for scene in draw_scenes(plain(world), 60):
        if len(scene.objects) == 1:
            colour = np.median(np.asarray(scene.image)[changed_mask(scene, 0.6)], axis=0) / 255
            low, high = world.hues[scene.objects[0].desc.split()[0]]
            hue = colorsys.rgb_to_hsv(*colour.tolist())[0] * 360
            assert (hue - low + 3) % 360 <= high - low + 6, (scene.objects, hue)


@pytest.mark.parametrize("world", WORLDS)
def test_draw_scene__boxes_and_sizes_are_in_range(world: World) -> None:
    for scene in draw_scenes(world, 150):
        width, height = scene.image.size
        assert scene.image.mode == "RGB"
        assert all(world.side_px[0] <= side <= world.side_px[1] for side in (width, height))
        for shown in scene.objects:
            x1, y1, x2, y2 = shown.bbox_2d
            assert shown.desc in world.labels
            assert all(side == int(side) for side in shown.bbox_2d)
            assert 0 <= x1 <= x2 - shapes.MIN_SIDE_PX
            assert 0 <= y1 <= y2 - shapes.MIN_SIDE_PX
            assert x2 <= width
            assert y2 <= height


@pytest.mark.parametrize("world", WORLDS)
def test_draw_scene__every_label_and_few_empty_scenes(world: World) -> None:
    scenes = draw_scenes(world, 300)
    counts = np.array([len(scene.objects) for scene in scenes])
    assert {shown.desc for scene in scenes for shown in scene.objects} == set(world.labels)
    assert 1 <= np.sum(counts == 0) <= 20
    assert counts.max() <= (16 if world.crowds else 8)
    if world.crowds:
        assert np.sum(counts > 8) >= 15
    assert np.mean((counts >= 1) & (counts <= 5)) > 0.6


def test_canvas__refuses_hidden_hiding_and_outlying_objects() -> None:
    canvas = shapes._Canvas(np.zeros((60, 60, 3), dtype=np.float32))
    mask = np.ones((20, 20), dtype=np.float32)
    assert canvas.place(mask, 10, 10, "red square", 0.35) is not None
    assert canvas.place(mask, 12, 12, "blue square", 0.35) is None  # lies mostly on the first
    assert canvas.place(np.ones((60, 60), dtype=np.float32), 0, 0, "blue square", 0.35) is None  # hides it
    assert canvas.place(mask, -9, 40, "blue square", 0.35) is None  # 55 % in the image
    assert canvas.place(mask, 200, 40, "blue square", 0.35) is None
    assert canvas.place(mask[:5], 35, 35, "blue square", 0.35) is None  # 5 px high
    assert canvas.place(mask, -8, 40, "blue square", 0.35) is not None
    assert [shown.bbox_2d for shown in canvas.objects] == [(10, 10, 30, 30), (0, 40, 12, 60)]


def test_canvas__counts_what_several_cover_together() -> None:
    canvas = shapes._Canvas(np.zeros((60, 60, 3), dtype=np.float32))
    mask = np.ones((20, 20), dtype=np.float32)
    assert canvas.place(mask, 20, 20, "red square", 0.35) is not None
    assert canvas.place(mask, 5, 20, "red square", 0.35) is not None  # covers 25 %
    assert canvas.place(mask, 35, 20, "red square", 0.35) is None  # another 25 %


def test_worlds__share_no_word_colour_shape_or_background() -> None:
    words = [{word for label in world.labels for word in label.split()} for world in (PRETRAIN, DEMO)]
    assert words[0].isdisjoint(words[1])
    assert [len(set(world.labels)) for world in (PRETRAIN, DEMO)] == [12, 6]
    assert set(PRETRAIN.backgrounds).isdisjoint(DEMO.backgrounds)
    assert set(PRETRAIN.outlines.values()).isdisjoint(DEMO.outlines.values())
    for (a_low, a_high), (b_low, b_high) in product(PRETRAIN.hues.values(), DEMO.hues.values()):
        assert (b_low - a_low) % 360 > a_high - a_low
        assert (a_low - b_low) % 360 > b_high - b_low


@pytest.mark.parametrize("world", WORLDS)
def test_worlds__each_colour_has_several_shapes_and_each_shape_several_colours(world: World) -> None:
    pairs = [label.split() for label in world.labels]
    assert all(colour in world.hues and shape in world.outlines for colour, shape in pairs)
    assert min(Counter(colour for colour, _ in pairs).values()) >= 2
    assert min(Counter(shape for _, shape in pairs).values()) >= 2


@pytest.mark.parametrize("world", WORLDS)
def test_write_dataset__reads_back_as_samples(world: World, tmp_path: Path) -> None:
    done: list[int] = []

    @contextmanager
    def show(description: str, total: int) -> Iterator[Advance]:
        assert (description, total) == ("drawing val images", 6)
        yield lambda finished, text: done.append(finished)

    with shown_by(show):
        path = write_dataset(world, tmp_path / "data" / "val.jsonl", 6, seed=3)
    samples = list(SampleFile(path))
    assert done == [1, 2, 3, 4, 5, 6]
    assert [sample.student.image for sample in samples] == [f"images/val_{i:05d}.png" for i in range(6)]
    for index, sample in enumerate(samples):
        scene = draw_scene(world, np.random.default_rng([3, index]))
        assert sample.student.objects == scene.objects
        assert (sample.student.width, sample.student.height) == scene.image.size
        with Image.open(path.parent / sample.student.image) as image:
            assert np.array_equal(np.asarray(image), np.asarray(scene.image))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["images", "val.jsonl"]


def test_write_dataset__same_seed_same_bytes(tmp_path: Path) -> None:
    first, second, longer, other = (
        write_dataset(PRETRAIN, tmp_path / name / "train.jsonl", count, seed)
        for name, count, seed in (("a", 4, 1), ("b", 4, 1), ("c", 6, 1), ("d", 4, 2))
    )
    assert first.read_bytes() == second.read_bytes()
    assert longer.read_bytes().startswith(first.read_bytes())
    assert other.read_bytes() != first.read_bytes()
    for image in sorted((first.parent / "images").iterdir()):
        assert image.read_bytes() == (second.parent / "images" / image.name).read_bytes()
        assert image.read_bytes() == (longer.parent / "images" / image.name).read_bytes()


def test_write_dataset__interrupted_leaves_no_sample_file(tmp_path: Path) -> None:
    def interrupt(finished: int, text: str) -> None:
        if finished == 2:
            raise KeyboardInterrupt

    path = tmp_path / "train.jsonl"
    with pytest.raises(KeyboardInterrupt), shown_by(lambda description, total: nullcontext(interrupt)):
        write_dataset(DEMO, path, 4, seed=0)
    assert not path.exists()
    assert write_dataset(DEMO, path, 4, seed=0).exists()


def test_write_dataset__names_the_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write \(Not a directory") as caught:
        write_dataset(DEMO, tmp_path / "file" / "train.jsonl", 1, seed=0)
    assert caught.value.problems[0].where == str(tmp_path / "file" / "train.jsonl")
