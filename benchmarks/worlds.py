"""The worlds that the embedded models are pre-trained on; many tests draw from them, too.

``PRETRAIN`` varies what real photographs vary (contrast, blur, shading, crowds, touching and cut objects),
``PRIMER`` shows the same kinds of objects plainly.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from PIL import Image

from qwendet.demo.scenery import Floats, Polygons, along, as_floats, polar, regular
from qwendet.demo.shapes import World


def circle(rng: np.random.Generator) -> Polygons:
    """A disc whose edge wobbles by up to 6 %, as that of a cell does."""
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    waves = np.cos(np.outer(angles, (2.0, 3.0, 5.0)) + rng.uniform(0, 2 * math.pi, 3))
    return (polar(angles, 1.0 + waves @ rng.uniform(0, 0.02, 3)),)


def ring(rng: np.random.Generator) -> Polygons:
    """A disc with a round hole of half to three quarters of its diameter."""
    (edge,) = circle(rng)
    return edge, edge * np.float32(rng.uniform(0.5, 0.75))


def square(_: np.random.Generator) -> Polygons:
    """Four corners; a rectangle once stretched."""
    return (regular(4, first=math.pi / 4),)


def triangle(_: np.random.Generator) -> Polygons:
    """Three corners, one up."""
    return (regular(3),)


def flat(_: np.random.Generator, width: int, height: int) -> Floats:
    """One tone."""
    return np.zeros((height, width), dtype=np.float32)


def gradient(rng: np.random.Generator, width: int, height: int) -> Floats:
    """From one tone to the other, in any direction."""
    return along(rng.uniform(0, 2 * math.pi), width, height) / (2 * math.hypot(width, height)) + 0.5


def clouds(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Smooth noise of 2 to 6 bumps a side."""
    columns, rows = rng.integers(3, 8, 2).tolist()
    coarse = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    return as_floats(coarse.resize((width, height), Image.Resampling.BICUBIC))


def speckle(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Fine grain, one to three pixels wide."""
    grain = int(rng.integers(1, 4))
    coarse = rng.integers(0, 256, (height // grain + 1, width // grain + 1), dtype=np.uint8)
    return as_floats(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


PRETRAIN = World(
    name="pretrain",
    labels=tuple(
        f"{c} {s}" for c in ("red", "green", "blue") for s in ("circle", "square", "triangle", "ring")
    ),
    hues={"red": (-14, 12), "green": (88, 150), "blue": (204, 240)},
    outlines={f.__name__: f for f in (circle, square, triangle, ring)},
    backgrounds=(flat, gradient, clouds, speckle),
    side_px=(84, 168),
    size=(0.1, 0.5),
    vividness=(0.25, 1.0),
    opacity=(0.35, 1.0),
    contrast=0.2,
    softness=0.06,
    stretch=1.35,
    overlap=0.35,
    crowds=0.1,
    cuts=0.25,
    distractors=0.3,
    wear=1.0,
)

# Fewer, larger and plainer objects of the same kinds, to learn to read and write places from.
PRIMER = replace(
    PRETRAIN,
    name="primer",
    side_px=(100, 124),
    size=(0.18, 0.5),
    opacity=(0.6, 1.0),
    overlap=0.1,
    crowds=0.0,
    cuts=0.05,
    distractors=0.1,
    wear=0.4,
    counts=(0.02, 0.26, 0.24, 0.2, 0.14, 0.09, 0.05),
)
