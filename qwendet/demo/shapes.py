"""Generated detection data: coloured shapes, drawn from the ranges of a world.

``DEMO`` shares no colour, no shape, no kind of background and no word of a label with the world that the
embedded models were pre-trained on.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwendet.data.augment import Scene
from qwendet.data.formats.jsonl_writer import sample_line
from qwendet.data.samples import DetectedObject, Turn
from qwendet.demo import scenery
from qwendet.demo.scenery import Field, Floats, Outline
from qwendet.files import atomic_file
from qwendet.progress import track

VISIBLE_COVERAGE = 0.3  # of a pixel, from which on it belongs to its object's box
MIN_SIDE_PX = 6
MIN_IN_IMAGE = 0.6  # share of an object's pixels that the image's edge leaves
CROWD_SIZE = (0.09, 0.24)  # as World.size
PLACE_TRIES = 12
COLOUR_TRIES = 12
HUE_TOLERANCE_DEGREES = 6.0  # by which a translucent colour may leave its range on its background
MIN_CHROMA = 0.13  # of a colour on its background; greyer ones have no name

Range = tuple[float, float]
Window = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True)
class World:
    """What scenes are drawn from; a pair of floats is a range, drawn from evenly unless said otherwise.

    Attributes:
        labels: each a word of ``hues``, a space, a word of ``outlines``.
        hues: colour word to hue range in degrees; below 0 is the red side of 360.
        outlines: shape word to what draws it.
        side_px: width and height of the image, each drawn for itself, inclusive.
        size: diameter of an object as a share of the image's shorter side, evenly by its logarithm.
        vividness: HSV saturation and value of an object, each drawn for itself.
        opacity: of an object's inside.
        contrast: least distance in RGB (each 0-1) of an object from what it lies on.
        softness: largest sigma of the blur of an object's edge, as a share of its diameter.
        stretch: largest ratio of an object's sides to those of its outline.
        overlap: largest share of an object that may be covered, or lie on others.
        crowds: probability of a scene of 8 to 16 small objects that tend to touch.
        cuts: probability of an object that may reach over the image's edge.
        distractors: probability of lines, strokes or blobs that are no objects.
        wear: how far the camera spoils the picture, 0-1.
        counts: weights of the numbers of objects from 0 on, in a scene that is no crowd.
    """

    name: str
    labels: tuple[str, ...]
    hues: Mapping[str, Range]
    outlines: Mapping[str, Outline]
    backgrounds: tuple[Field, ...]
    side_px: tuple[int, int]
    size: Range
    vividness: Range
    opacity: Range
    contrast: float
    softness: float
    stretch: float
    overlap: float
    crowds: float
    cuts: float
    distractors: float
    wear: float
    counts: tuple[float, ...] = (0.03, 0.2, 0.19, 0.18, 0.15, 0.1, 0.07, 0.05, 0.03)


DEMO = World(
    name="demo",
    labels=("orange star", "orange cross", "purple star", "purple crescent", "cyan cross", "cyan crescent"),
    hues={"orange": (24, 38), "purple": (268, 288), "cyan": (174, 192)},
    outlines={f.__name__: f for f in (scenery.star, scenery.cross, scenery.crescent)},
    backgrounds=(scenery.stripes, scenery.checkerboard, scenery.dots),
    side_px=(112, 112),
    size=(0.2, 0.45),
    vividness=(0.65, 1.0),
    opacity=(0.85, 1.0),
    contrast=0.35,
    softness=0.02,
    stretch=1.2,
    overlap=0.1,
    crowds=0.0,
    cuts=0.05,
    distractors=0.1,
    wear=0.4,
)


def draw_scene(world: World, rng: np.random.Generator) -> Scene:
    """Draw one image and its objects; every decision comes from ``rng``: give each scene its own.

    Objects are in painting order. A box bounds what the image's edge leaves of its object, whether or not
    another one lies on top; it has whole numbers, x2 and y2 exclusive, and sides of at least 6.

    Example:
        >>> draw_scene(DEMO, np.random.default_rng(1)).image.mode
        'RGB'
    """
    width, height = rng.integers(world.side_px[0], world.side_px[1] + 1, 2).tolist()
    canvas = _Canvas(_background(world, rng, width, height))
    if rng.random() < world.crowds:
        _draw_crowd(world, rng, canvas)
    else:
        for _ in range(int(rng.choice(len(world.counts), p=world.counts))):
            diameter_px = _log_uniform(rng, world.size) * min(width, height)
            _draw_object(world, rng, canvas, str(rng.choice(world.labels)), diameter_px, touching=0.15)
    return Scene(scenery.photograph(canvas.pixels, world.wear, rng), tuple(canvas.objects))


def _draw_crowd(world: World, rng: np.random.Generator, canvas: _Canvas) -> None:
    """Objects of about one size and one to four labels, as cells under a microscope."""
    labels = rng.choice(world.labels, int(rng.integers(1, 5)))
    diameter_px = _log_uniform(rng, CROWD_SIZE) * min(canvas.owner.shape)
    touching = rng.uniform(0.2, 0.9)
    for _ in range(int(rng.integers(8, 17))):
        scale = min(max(math.exp(rng.normal(0, 0.2)), 0.8), 1.8)
        _draw_object(world, rng, canvas, str(rng.choice(labels)), diameter_px * scale, touching)


def _log_uniform(rng: np.random.Generator, bounds: Range) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _background(world: World, rng: np.random.Generator, width: int, height: int) -> Floats:
    field = world.backgrounds[int(rng.integers(len(world.backgrounds)))](rng, width, height)
    tone = scenery.rgb(rng.uniform(0, 360), 0.3 * rng.random() ** 2, 1 - 0.9 * rng.random() ** 1.5)
    step = rng.uniform(0.06, 0.22) * (1 if tone.max() < 0.6 else -1)  # away from black or white
    other = np.clip(tone + step + rng.uniform(-0.04, 0.04, 3), 0, 1).astype(np.float32)
    pixels = tone + field[:, :, None] * (other - tone)
    if rng.random() < world.distractors:
        overlay = scenery.distractors(rng, width, height)[:, :, None]
        pixels += overlay * (np.float32(rng.random()) - pixels)
    return pixels


class _Canvas:
    """Pixels, and which object is on top at each of them."""

    def __init__(self, pixels: Floats) -> None:
        self.pixels = pixels
        self.owner: NDArray[np.int64] = np.zeros(pixels.shape[:2], dtype=np.int64)
        self.objects: list[DetectedObject] = []
        self._areas_px = np.zeros(1, dtype=np.int64)  # of the background (unused), then of each object
        self._shown_px = np.zeros(1, dtype=np.int64)

    def place(
        self, mask: Floats, left: int, top: int, label: str, overlap: float
    ) -> tuple[Window, Window] | None:
        """Record an object as the topmost, if enough of it is in the image and of all objects in sight.

        The ``(h, w)`` mask is its coverage in 0-1; ``left`` and ``top``, where its first pixel is, may be
        negative. Returns the windows of image and mask that lie on each other; None if there is no room.
        """
        rows, mask_rows = _common(top, mask.shape[0], self.owner.shape[0])
        columns, mask_columns = _common(left, mask.shape[1], self.owner.shape[1])
        shape = mask[mask_rows, mask_columns] >= VISIBLE_COVERAGE
        area_px = int(np.count_nonzero(shape))
        if area_px < MIN_IN_IMAGE * np.count_nonzero(mask >= VISIBLE_COVERAGE):
            return None
        x1, y1, x2, y2 = tight_box(shape)
        owners = self.owner[rows, columns][shape]
        shown_px = self._shown_px - np.bincount(owners, minlength=len(self._shown_px))
        is_small = min(x2 - x1, y2 - y1) < MIN_SIDE_PX
        lies_on_others = np.count_nonzero(owners) > overlap * area_px
        if is_small or lies_on_others or np.any(shown_px[1:] < (1 - overlap) * self._areas_px[1:]):
            return None
        self._shown_px = np.append(shown_px, area_px)
        self._areas_px = np.append(self._areas_px, area_px)
        box = (columns.start + x1, rows.start + y1, columns.start + x2, rows.start + y2)
        self.objects.append(DetectedObject(box, label))
        self.owner[rows, columns][shape] = len(self.objects)
        return (rows, columns), (mask_rows, mask_columns)


def _common(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """What ``start .. start + length`` shares with ``0 .. limit``, counted from 0 and from ``start``."""
    low, high = max(0, start), min(limit, start + length)
    return slice(low, max(low, high)), slice(low - start, max(low, high) - start)


def tight_box(shape: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Bounds, xyxy, of the True pixels of ``(h, w)``, at least one; x2 and y2 exclusive.

    Example:
        >>> tight_box(np.array([[False, True, True], [False, False, False]]))
        (1, 0, 3, 1)
    """
    columns, rows = np.flatnonzero(shape.any(axis=0)), np.flatnonzero(shape.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _draw_object(
    world: World, rng: np.random.Generator, canvas: _Canvas, label: str, diameter_px: float, touching: float
) -> None:
    """Draw one object where there is room, or none after ``PLACE_TRIES``."""
    colour, shape = label.split(" ")
    stretch = _log_uniform(rng, (1 / world.stretch, world.stretch))
    outline = world.outlines[shape](rng)
    polygons = scenery.transform(outline, diameter_px / 2, stretch, rng.uniform(0, 2 * math.pi))
    mask = scenery.stencil(polygons, diameter_px * world.softness * rng.random() ** 2)
    reach = rng.uniform(0, 0.45) if rng.random() < world.cuts else 0.0
    for _ in range(PLACE_TRIES):
        left, top = _propose(rng, canvas, mask, reach, rng.random() < touching)
        windows = canvas.place(mask, left, top, label, world.overlap)
        if windows is not None:
            image_window, mask_window = windows
            region = canvas.pixels[image_window]
            behind = region[mask[mask_window] >= VISIBLE_COVERAGE].mean(axis=0)
            paint, opacity = _pick_paint(world, rng, colour, behind)
            cover, shade = scenery.shading(mask, opacity, rng)
            region += cover[mask_window][:, :, None] * (paint * shade[mask_window][:, :, None] - region)
            return


def _propose(
    rng: np.random.Generator, canvas: _Canvas, mask: Floats, reach: float, touches: bool
) -> tuple[int, int]:
    """Left and top for a mask: beside an object drawn before, or anywhere, over the edge by ``reach``."""
    x1, y1, x2, y2 = tight_box(mask >= VISIBLE_COVERAGE)
    width, height = x2 - x1, y2 - y1
    if touches and canvas.objects:
        near = canvas.objects[int(rng.integers(len(canvas.objects)))].bbox_2d
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.42, 0.54)
        x = (near[0] + near[2] - width) / 2 + math.cos(angle) * distance * (near[2] - near[0] + width)
        y = (near[1] + near[3] - height) / 2 + math.sin(angle) * distance * (near[3] - near[1] + height)
    else:
        image_height, image_width = canvas.owner.shape
        x = rng.uniform(-reach * width, image_width - (1 - reach) * width)
        y = rng.uniform(-reach * height, image_height - (1 - reach) * height)
    if reach == 0:
        x = min(max(x, 0), canvas.owner.shape[1] - width)
        y = min(max(y, 0), canvas.owner.shape[0] - height)
    return round(x) - x1, round(y) - y1


def _pick_paint(world: World, rng: np.random.Generator, colour: str, behind: Floats) -> tuple[Floats, float]:
    """An RGB and an opacity that can be seen on ``behind`` and still called ``colour`` there."""
    low, high = world.hues[colour]
    for _ in range(COLOUR_TRIES):
        saturation, value = rng.uniform(*world.vividness, 2).tolist()
        paint = scenery.rgb(rng.uniform(low, high), saturation, value)
        opacity = float(rng.uniform(*world.opacity))
        seen = (behind + opacity * (paint - behind)).tolist()
        hue = colorsys.rgb_to_hsv(*seen)[0] * 360
        is_named = (hue - low + HUE_TOLERANCE_DEGREES) % 360 <= high - low + 2 * HUE_TOLERANCE_DEGREES
        has_chroma = max(seen) - min(seen) >= MIN_CHROMA
        if is_named and has_chroma and math.dist(seen, behind.tolist()) >= world.contrast:
            return paint, opacity
    return scenery.rgb(rng.uniform(low, high), 1.0, 0.9), 1.0


def write_dataset(world: World, path: Path, count: int, seed: int) -> Path:
    """Write a sample file and its images beside it; the file appears once all images are there.

    Scene ``i`` is drawn from ``[seed, i]``: a larger ``count`` begins with the same scenes.
    """
    assert count > 0, count
    with (
        track(f"drawing {path.stem} images", count) as advance,
        atomic_file(path) as staging,
        staging.open("w", encoding="utf-8") as file,
    ):
        (path.parent / "images").mkdir(exist_ok=True)
        for index in range(count):
            scene = draw_scene(world, np.random.default_rng([seed, index]))
            image = f"images/{path.stem}_{index:05d}.png"
            scene.image.save(path.parent / image)
            width, height = scene.image.size
            file.write(sample_line(Turn(image, scene.objects, width, height), image))
            advance(index + 1, "")
    return path
