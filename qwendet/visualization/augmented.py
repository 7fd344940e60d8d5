"""What ``data.augment`` makes of images: a grid, each row an image as it is and as training might see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image

from qwendet.config.augment_steps import Preset
from qwendet.config.schema import DataConfig
from qwendet.data.augment import Augmenter, Scene, scene_of
from qwendet.data.directions import direction_problems
from qwendet.data.samples import Sample
from qwendet.errors import ConfigError
from qwendet.files import atomic_file
from qwendet.visualization.pictures import draw_boxes, shrunk

ROWS, COLUMNS, CELL = 6, 5, 320


def save_augmented(samples: Sequence[Sample], preset: Preset, folder: Path) -> Path:
    """Draw the first images with objects, as they are and augmented four times."""
    augmenter = Augmenter(settings := DataConfig(augment=preset))
    labels = sorted({item.desc for sample in samples for item in sample.student.objects})
    if problems := list(direction_problems(settings, augmenter.steps, labels)):
        raise ConfigError.of(problems)
    shown = [sample for sample in samples if sample.student.objects][:ROWS] or list(samples[:1])

    def another(generator: Random) -> Scene:
        other = generator.choice(samples)
        return scene_of(other.student, other.where)

    canvas = Image.new("RGB", (COLUMNS * CELL, len(shown) * CELL), "white")
    for row, sample in enumerate(shown):
        scene = scene_of(sample.student, sample.where)
        made = [augmenter.scene(scene, Random(f"{row}/{column}"), another) for column in range(1, COLUMNS)]
        for column, one in enumerate([scene, *made]):
            picture = draw_boxes(
                one.image, [item.bbox_2d for item in one.objects], [i.desc for i in one.objects]
            )
            canvas.paste(shrunk(picture, CELL)[0], (column * CELL, row * CELL))
    with atomic_file(folder / "augmented.png") as path:
        canvas.save(path, format="PNG")
    return folder / "augmented.png"
