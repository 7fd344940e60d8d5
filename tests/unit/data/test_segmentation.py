"""Polygons and masks beside boxes: read or refused, moved with the pixels, cut with the image."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from qwendet.config.augment_steps import AugmentStep
from qwendet.data.augment import STEPS, Scene, mosaic
from qwendet.data.samples import DetectedObject, SampleFile, parse_sample
from qwendet.data.segmentation import Rle, Segmentation, cut, extent, read_rle, rle_of, union
from qwendet.data.tile import Tiling, tile_dataset
from qwendet.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
"""Of pycocotools' decoder, which judges ours."""

SIZE = (120, 90)
TRIANGLE = (10.0, 10.0, 60.0, 20.0, 30.0, 70.0)
ARROW = (10.0, 10.0, 90.0, 12.0, 50.0, 40.0, 80.0, 80.0, 12.0, 60.0)


def drawn(found: Segmentation, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of polygons or a mask, by Pillow or pycocotools."""
    if isinstance(found, Rle):
        assert (found.width, found.height) == size
        encoded = found.to_coco()
        if not isinstance(found.counts, str):
            encoded = coco.frPyObjects(encoded, found.height, found.width)
        return np.asarray(coco.decode(encoded), dtype=bool)
    image = Image.new("L", (size[0] * 4, size[1] * 4))
    for ring in found:
        ImageDraw.Draw(image).polygon([value * 4 for value in ring], fill=255)
    return np.asarray(image.resize(size, Image.Resampling.BOX)) >= 128


def scene(found: Segmentation, size: tuple[int, int] = SIZE) -> Scene:
    """White where the object is, on black; its box is that of what is drawn."""
    shape = drawn(found, size)
    box = extent(found)
    assert box is not None
    return Scene(Image.fromarray(shape).convert("RGB"), (DetectedObject(box, "white", segmentation=found),))


@st.composite
def rings(draw: st.DrawFn) -> tuple[float, ...]:
    """A star-shaped polygon of at least 10 pixels inside of ``SIZE``."""
    count, seed = draw(st.integers(3, 12)), Random(draw(st.integers(0, 10**6)))
    radius, angle = seed.uniform(12, 40), seed.uniform(0, 6)
    x, y = seed.uniform(radius, SIZE[0] - radius), seed.uniform(radius, SIZE[1] - radius)
    turns = [angle + 2 * np.pi * (at + seed.uniform(0, 0.5)) / count for at in range(count)]
    reach = [radius * seed.uniform(0.4, 1) for _ in range(count)]
    points = [
        (x + far * np.cos(turn), y + far * np.sin(turn)) for far, turn in zip(reach, turns, strict=True)
    ]
    return tuple(float(value) for point in points for value in point)


def share_off(image: Image.Image, found: Segmentation) -> float:
    """Share of an object's pixels that are not under its polygon or mask, or the reverse."""
    white = np.asarray(image.convert("L")) >= 128
    outline = sum(np.abs(np.diff(np.pad(white, 1).astype(int), axis=axis)).sum() for axis in (0, 1))
    # 15 % of a small object is less than the half pixel by which its edge may be off.
    return float((white != drawn(found, image.size)).sum() / max(1, white.sum(), outline / 2 / 0.15))


@settings(max_examples=60, deadline=None)
@given(
    rings(),
    st.sampled_from(("horizontal_flip", "vertical_flip", "quarter_turn", "crop", "scale")),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_pixels__what_is_drawn_is_still_under_its_polygon_or_mask(
    ring: tuple[float, ...], name: str, is_mask: bool, seed: int
) -> None:
    found: Segmentation = rle_of(drawn((ring,), SIZE)) if is_mask else (ring,)
    after = STEPS[name](AugmentStep(name=name, min_visible=0.1), scene(found), Random(seed))  # type: ignore[arg-type]
    for item in after.objects:
        assert item.segmentation is not None
        # Edges of polygons are half pixels; whole pixels that move stay whole.
        assert share_off(after.image, item.segmentation) <= (0 if is_mask and name != "scale" else 0.15)
        around = extent(item.segmentation)
        assert around is not None
        assert max(abs(a - b) for a, b in zip(around, item.bbox_2d, strict=True)) <= (
            1.5 if is_mask else 1e-9
        )


def test_mosaic__polygons_and_masks_go_into_their_quarters() -> None:
    four: list[Segmentation] = [(TRIANGLE,), rle_of(drawn((ARROW,), SIZE)), (ARROW,), (TRIANGLE,)]
    after = mosaic(AugmentStep(name="mosaic", range=(0.5, 0.5)), list(map(scene, four)), Random(3))
    assert len(after.objects) == 4
    whole = np.zeros(SIZE[::-1], dtype=bool)
    for item in after.objects:
        assert item.segmentation is not None
        whole |= drawn(item.segmentation, SIZE)
    white = np.asarray(after.image.convert("L")) >= 128
    assert (white != whole).sum() / white.sum() < 0.1


def test_cut__a_box_that_was_its_polygons_is_that_of_what_is_left() -> None:
    """The box, cut alone, would be 60 wide; the triangle's part in the window is 40."""
    before = scene(((0.0, 0.0, 80.0, 80.0, 0.0, 80.0),))
    after = before.seen((0, 0, 60, 40), (60, 40), 0.0)
    (item,) = after.objects
    assert item.bbox_2d == (0, 0, 40, 40)
    assert item.segmentation == ((0, 40, 0, 0, 40, 40),)
    amodal = DetectedObject((0, 0, 100, 80), "white", segmentation=before.objects[0].segmentation)
    (kept,) = Scene(before.image, (amodal,)).seen((0, 0, 60, 40), (60, 40), 0.0).objects
    assert kept.bbox_2d == (0, 0, 60, 40), "a box that is not its polygon's is cut as it is"
    corner = before.seen((60, 0, 100, 20), (40, 20), 0.0)
    assert corner.objects == (), "the box reaches into the window, and the triangle does not"


def test_cut__at_every_edge() -> None:
    assert cut(((-10.0, -10.0, 50.0, -10.0, 50.0, 50.0, -10.0, 50.0),), (30, 20)) == (
        (0.0, 20.0, 0.0, 0.0, 30.0, 0.0, 30.0, 20.0),
    )
    assert cut(((40.0, 0.0, 50.0, 0.0, 45.0, 9.0),), (30, 20)) is None


@pytest.mark.parametrize("is_mask", [False, True])
def test_tile__what_is_drawn_is_under_its_polygon_in_every_window(tmp_path: Path, is_mask: bool) -> None:
    found: Segmentation = rle_of(drawn((ARROW,), SIZE)) if is_mask else (ARROW,)
    before = scene(found)
    own = {"rle": found.to_coco()} if isinstance(found, Rle) else {"polygon": [list(ARROW)]}
    (tmp_path / "in").mkdir()
    before.image.save(tmp_path / "in" / "a.png")
    record = {"images": ["a.png"], "objects": [{"bbox_2d": [*before.objects[0].bbox_2d], "desc": "w", **own}]}
    (tmp_path / "in" / "train.jsonl").write_text(json.dumps(record) + "\n")
    tile_dataset(tmp_path / "in", tmp_path / "out", Tiling("2x2", overlap=0.0, min_visible=0.0))
    samples = list(SampleFile(tmp_path / "out" / "train.jsonl"))
    assert len(samples) == 4
    for sample in samples:
        (item,) = sample.student.objects
        assert item.segmentation is not None
        with Image.open(tmp_path / "out" / sample.student.image) as image:
            assert share_off(image, item.segmentation) <= (0 if is_mask else 0.1)


def test_union__of_polygons_and_masks() -> None:
    both = union([(TRIANGLE,), (ARROW,)], SIZE)
    assert both == (TRIANGLE, ARROW)
    mask = union([(TRIANGLE,), rle_of(drawn((ARROW,), SIZE))], SIZE)
    assert isinstance(mask, Rle)
    assert (drawn(mask, SIZE) ^ (drawn((TRIANGLE,), SIZE) | drawn((ARROW,), SIZE))).mean() < 0.01


# What is refused

CORNERS = "expected x and y of three corners or more, got"
WHOLE = {"bbox_2d": [1, 2, 30, 40], "desc": "cat"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "odd": (
        {"polygon": [[1, 2, 3, 4, 5, 6, 7]]},
        "polygon[0]: expected x and y of three corners or more, got 7",
    ),
    "two corners": (
        {"polygon": [[1, 2, 3, 4]]},
        "polygon[0]: expected x and y of three corners or more, got 4",
    ),
    "second": ({"polygon": [[1, 2, 3, 4, 5, 6], [1, 2]]}, "polygon[1]: expected x and y"),
    "flat": ({"polygon": [1, 2, 3, 4, 5, 6]}, "polygon[0]: expected [x1, y1, x2, y2, x3, y3, …], got 1"),
    "points": ({"polygon": [[[1, 2], [3, 4], [5, 6]]]}, "polygon[0]: expected [x1, y1, x2"),
    "empty": ({"polygon": []}, "polygon: expected a list of polygons, got []"),
    "text": ({"polygon": "M 1 2"}, "polygon: expected a list of polygons, got 'M 1 2'"),
    "not a number": ({"polygon": [[1, 2, 3, 4, 5, float("nan")]]}, "polygon[0]: expected [x1, y1"),
    "both": (
        {"polygon": [[1, 2, 3, 4, 5, 6]], "rle": {"size": [60, 80], "counts": [4800]}},
        "expected polygon or rle, got both",
    ),
    "other size": (
        {"rle": {"size": [80, 60], "counts": [4800]}},
        "rle: the mask is of 60×80, and the image 80×60",
    ),
    "counts too short": (
        {"rle": {"size": [60, 80], "counts": [4799]}},
        "the mask's counts do not fill its size",
    ),
    "compressed, too short": ({"rle": {"size": [60, 80], "counts": "01"}}, "the mask's counts do not fill"),
    "no mask": ({"rle": [1, 2, 3]}, "rle: expected a mask, got [1, 2, 3]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_sample__malformed_ones_are_refused_with_their_place(kind: str) -> None:
    more, words = REFUSED[kind]
    record = {"images": ["a.jpg"], "width": 80, "height": 60, "objects": [WHOLE, WHOLE | more]}
    with pytest.raises(DataError) as caught:
        parse_sample(json.dumps(record), "x.jsonl:3")
    (problem,) = caught.value.problems
    assert problem.where == "x.jsonl:3"
    assert problem.what.startswith("objects[1]")
    assert words in problem.what
    assert problem.fix


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_rle__compressed_and_not(height: int, width: int, seed: int) -> None:
    mask = np.kron(np.random.default_rng(seed).random((height, width)) < 0.5, np.ones((3, 5))) > 0
    found = rle_of(mask)
    assert read_rle(found.to_coco(), "", "") == found
    flat, runs, value, run = mask.T.ravel(), [], False, 0
    for pixel in flat:
        if pixel != value:
            runs.append(run)
            value, run = bool(pixel), 0
        run += 1
    plain = {"size": list(mask.shape), "counts": [*runs, run]}
    assert (drawn(read_rle(plain, "", ""), mask.shape[::-1]) == mask).all()
    with pytest.raises(DataError, match="do not fill"):
        read_rle({"size": [mask.shape[0] + 1, mask.shape[1]], "counts": found.counts}, "", "")


def test_object__without_a_polygon_holds_one_reference_more_and_is_equal() -> None:
    bare = DetectedObject((1, 2, 3, 4), "cat")
    with_polygon = DetectedObject((1, 2, 3, 4), "cat", segmentation=(TRIANGLE,))
    assert bare.segmentation is None
    assert bare == with_polygon
    assert repr(bare) == repr(with_polygon)
