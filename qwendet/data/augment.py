"""Training images changed at random, and their boxes, polygons and masks with them.

    turn ─► image, objects ─► step ─► step … ─► the turn with pixels of its own and moved objects

A step draws from the generator that it is given, and from nothing else. Flips, turns and cuts move whole
pixels; where an image is resized, its boxes are multiplied by the same factors. See docs/augmentation.md.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from PIL import Image, ImageEnhance, ImageFilter

from qwendet.config.augment_steps import AugmentStep, Preset
from qwendet.config.schema import DataConfig
from qwendet.data.images import MIN_IMAGE_SIDE, open_image
from qwendet.data.samples import DetectedObject, Turn
from qwendet.data.segmentation import Box, Move, cut, extent, fits, moved

_FLIP, _COLOR = AugmentStep(name="horizontal_flip"), AugmentStep(name="color")
PRESETS: Mapping[Preset, tuple[AugmentStep, ...]] = {
    "off": (),
    "light": (_FLIP, AugmentStep(name="crop", probability=0.3, range=(0.5, 1.0)), _COLOR),
    "strong": (
        AugmentStep(name="mosaic", probability=0.2),
        _FLIP,
        AugmentStep(name="crop", range=(0.3, 1.0)),
        AugmentStep(name="scale", range=(0.7, 1.4)),
        AugmentStep(name="color", probability=0.8, range=(0.75, 1.25)),
        AugmentStep(name="blur", probability=0.1),
        AugmentStep(name="jpeg", probability=0.2),
    ),
    "aerial": (
        _FLIP,
        AugmentStep(name="vertical_flip"),
        AugmentStep(name="quarter_turn"),
        AugmentStep(name="crop", range=(0.4, 1.0)),
        _COLOR,
    ),
}


@dataclass(frozen=True)
class Scene:
    """An image and what is in it.

    Attributes:
        image: RGB.
        objects: boxes in pixels of ``image``.
        labels: of the turn, where it says itself what is asked: nobody knows where other objects are.
    """

    image: Image.Image
    objects: tuple[DetectedObject, ...]
    labels: tuple[str, ...] | None = None

    def moved(self, change: Callable[[Image.Image], Image.Image], move: Move) -> Scene:
        """The image and the masks in it changed, every corner of a box and of a polygon moved."""

        def box(x1: float, y1: float, x2: float, y2: float) -> Box:
            (left, top), (right, bottom) = move(x1, y1), move(x2, y2)
            return min(left, right), min(top, bottom), max(left, right), max(top, bottom)

        objects = (
            replace(
                item,
                bbox_2d=box(*item.bbox_2d),
                area=None,
                segmentation=moved(item.segmentation, change, move),
            )
            for item in self.objects
        )
        return replace(self, image=change(self.image), objects=tuple(objects))

    def objects_within(self, size: tuple[int, int], left: int, top: int) -> tuple[DetectedObject, ...]:
        """The objects, where the scene is a part of an image of this size."""

        def place(image: Image.Image) -> Image.Image:
            whole = Image.new(image.mode, size)
            whole.paste(image, (left, top))
            return whole

        return self.moved(place, lambda x, y: (x + left, y + top)).objects

    def seen(self, window: Box, size: tuple[int, int], min_visible: float) -> Scene:
        """A window of the image in another size.

        Boxes are cut at its edges; one is dropped if less than ``min_visible`` of its area, or less than a
        pixel of a side, is left. One that was its polygon's or mask's is that of what is left of it.

        Args:
            window: xyxy, pixels of the image.
            size: width and height to resize it to.
            min_visible: 0 to 1.
        """
        left, top, right, bottom = window
        across, down = size[0] / (right - left), size[1] / (bottom - top)

        def is_near(box: Box) -> bool:
            return box[0] < right and left < box[2] and box[1] < bottom and top < box[3]

        shown = replace(self, objects=tuple(item for item in self.objects if is_near(item.bbox_2d)))
        scene = shown.moved(
            lambda image: image.resize(size, Image.Resampling.BICUBIC, box=window),
            lambda x, y: ((x - left) * across, (y - top) * down),
        )
        pairs = zip(shown.objects, scene.objects, strict=True)
        least = min_visible * across * down
        kept = (_cut(old, new, size, least) for old, new in pairs)
        return replace(scene, objects=tuple(item for item in kept if item is not None))


def _cut(
    old: DetectedObject, new: DetectedObject, size: tuple[int, int], least: float
) -> DetectedObject | None:
    """What an image of this size shows of an object; None if that is too little."""
    x1, x2 = (min(max(0.0, x), size[0]) for x in new.bbox_2d[::2])
    y1, y2 = (min(max(0.0, y), size[1]) for y in new.bbox_2d[1::2])
    item = replace(new, bbox_2d=(x1, y1, x2, y2))
    if new.segmentation is not None and item.bbox_2d != new.bbox_2d:
        left = cut(new.segmentation, size)
        if old.segmentation is not None and fits(extent(old.segmentation), old.bbox_2d):
            item = replace(item, bbox_2d=(left and extent(left)) or (0, 0, 0, 0))
        item = replace(item, segmentation=left)
    (x1, y1, x2, y2), (left_x, top_y, right_x, bottom_y) = item.bbox_2d, old.bbox_2d
    is_left = (x2 - x1) * (y2 - y1) >= least * (right_x - left_x) * (bottom_y - top_y)
    return item if is_left and min(x2 - x1, y2 - y1) >= 1 else None


Draw = Callable[[Random], Scene]
"""Another scene of the training set."""


def steps_of(settings: DataConfig) -> tuple[AugmentStep, ...]:
    """The steps that ``data.augment`` names or lists."""
    return PRESETS[settings.augment] if isinstance(settings.augment, str) else settings.augment


class Augmenter:
    """The steps of ``data.augment``."""

    def __init__(self, settings: DataConfig) -> None:
        self.steps = steps_of(settings)
        self.flipped = settings.flipped_labels()

    def turn(self, turn: Turn, where: str, generator: Random, draw: Draw) -> Turn:
        """A turn as training sees it this time."""
        scene = self.scene(scene_of(turn, where), generator, draw)
        width, height = scene.image.size
        moved = replace(turn, objects=scene.objects, labels=scene.labels, pixels=scene.image)
        return replace(moved, width=width, height=height)

    def scene(self, scene: Scene, generator: Random, draw: Draw) -> Scene:
        """Take each step with its probability."""
        for step in self.steps:
            if generator.random() < step.probability:
                scene = self._taken(step, scene, generator, draw)
        return scene

    def _taken(self, step: AugmentStep, scene: Scene, generator: Random, draw: Draw) -> Scene:
        if step.name == "mosaic":
            scenes = [scene, *(draw(generator) for _ in range(3))]
            whole = all(part.labels is None for part in scenes)
            return mosaic(step, scenes, generator) if whole else scene
        scene = STEPS[step.name](step, scene, generator)
        if step.name != "horizontal_flip":
            return scene
        named = (replace(item, desc=self.flipped.get(item.desc, item.desc)) for item in scene.objects)
        asked = scene.labels and tuple(self.flipped.get(label, label) for label in scene.labels)
        return replace(scene, objects=tuple(named), labels=asked)


def scene_of(turn: Turn, where: str) -> Scene:
    """A turn as it is in its file; raises as :func:`~qwendet.data.images.open_image`."""
    image = open_image(turn.image, turn.root, where, turn.declared_size)
    turn.require_masks_of(image.size, where)
    return Scene(image, turn.objects, turn.labels)


def _horizontal_flip(step: AugmentStep, scene: Scene, generator: Random) -> Scene:
    width = scene.image.width
    return scene.moved(_transposed(Image.Transpose.FLIP_LEFT_RIGHT), lambda x, y: (width - x, y))


def _vertical_flip(step: AugmentStep, scene: Scene, generator: Random) -> Scene:
    height = scene.image.height
    return scene.moved(_transposed(Image.Transpose.FLIP_TOP_BOTTOM), lambda x, y: (x, height - y))


def _quarter_turn(step: AugmentStep, scene: Scene, generator: Random) -> Scene:
    """One to three quarters, counterclockwise."""
    for _ in range(generator.randint(1, 3)):
        turn = partial(_turned, width=scene.image.width)
        scene = scene.moved(_transposed(Image.Transpose.ROTATE_90), turn)
    return scene


def _turned(x: float, y: float, width: int) -> tuple[float, float]:
    return y, width - x


def _transposed(how: Image.Transpose) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transpose(how)


def _crop(step: AugmentStep, scene: Scene, generator: Random) -> Scene:
    """A window of the image's shape, around the centre of an object where there is one."""
    share = generator.uniform(*step.limits()) ** 0.5
    size = [min(side, max(MIN_IMAGE_SIDE, round(side * share))) for side in scene.image.size]
    centre = [generator.uniform(0, side) for side in scene.image.size]
    if scene.objects:
        x1, y1, x2, y2 = generator.choice(scene.objects).bbox_2d
        centre = [(x1 + x2) / 2, (y1 + y2) / 2]
    start = []
    for at, part, whole in zip(centre, size, scene.image.size, strict=True):
        lowest, highest = max(0, int(at) - part + 1), min(whole - part, int(at))
        start.append(generator.randint(min(lowest, highest), highest))
    left, top = start
    return scene.seen((left, top, left + size[0], top + size[1]), (size[0], size[1]), step.min_visible)


def _scale(step: AugmentStep, scene: Scene, generator: Random) -> Scene:
    factor = generator.uniform(*step.limits())
    width, height = (max(MIN_IMAGE_SIDE, round(side * factor)) for side in scene.image.size)
    return scene.seen((0, 0, *scene.image.size), (width, height), 0.0)


def _color(step: AugmentStep, scene: Scene, generator: Random) -> Scene:
    """Brightness, contrast and saturation; never hue, which labels name."""
    image = scene.image
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(generator.uniform(*step.limits()))
    return replace(scene, image=image)


def _blur(step: AugmentStep, scene: Scene, generator: Random) -> Scene:
    blurred = scene.image.filter(ImageFilter.GaussianBlur(generator.uniform(*step.limits())))
    return replace(scene, image=blurred)


def _jpeg(step: AugmentStep, scene: Scene, generator: Random) -> Scene:
    file = io.BytesIO()
    scene.image.save(file, "JPEG", quality=round(generator.uniform(*step.limits())))
    with Image.open(file) as stored:
        return replace(scene, image=stored.convert("RGB"))


def mosaic(step: AugmentStep, scenes: Sequence[Scene], generator: Random) -> Scene:
    """Four scenes in the quarters of an image of the first one's size, each cut to its quarter's shape."""
    width, height = scenes[0].image.size
    x, y = (round(side * generator.uniform(*step.limits())) for side in (width, height))
    quarters = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    generator.shuffle(quarters)
    canvas = Image.new("RGB", (width, height))
    objects: list[DetectedObject] = []
    for scene, (left, top, right, bottom) in zip(scenes, quarters, strict=True):
        size = right - left, bottom - top
        if not all(size):
            continue
        shrink = min(of / to for of, to in zip(scene.image.size, size, strict=True))
        part = [min(of, to * shrink) for of, to in zip(scene.image.size, size, strict=True)]
        start = [generator.uniform(0, of - to) for of, to in zip(scene.image.size, part, strict=True)]
        window = start[0], start[1], start[0] + part[0], start[1] + part[1]
        view = scene.seen(window, size, step.min_visible)
        canvas.paste(view.image, (left, top))
        objects += view.objects_within(canvas.size, left, top)
    return Scene(canvas, tuple(objects))


STEPS: Mapping[str, Callable[[AugmentStep, Scene, Random], Scene]] = {
    "horizontal_flip": _horizontal_flip,
    "vertical_flip": _vertical_flip,
    "quarter_turn": _quarter_turn,
    "crop": _crop,
    "scale": _scale,
    "color": _color,
    "blur": _blur,
    "jpeg": _jpeg,
}
"""What is done for each name but ``mosaic``, which takes several scenes."""
