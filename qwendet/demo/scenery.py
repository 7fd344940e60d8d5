"""Drawing primitives of the generated data: outlines, backgrounds, distractors and the camera.

    outline ─► transform ─► stencil (coverage of one object) ─► shading
    field   ─► lerp of two tones ─► distractors ─► objects ─► camera ─► RGB image

Colours are float in 0-1, RGB; angles are radians; lengths end in ``_px`` or are shares of another.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 3

Floats = NDArray[np.float32]
Polygons = tuple[Floats, ...]  # each (N, 2), x right and y down: the outer edge, then the holes
Outline = Callable[[np.random.Generator], Polygons]  # draws polygons within about the unit disc
Field = Callable[[np.random.Generator, int, int], Floats]  # (rng, width, height) -> (height, width), 0-1


def polar(angles: NDArray[np.float64], radii: NDArray[np.float64] | float) -> Floats:
    """Points at these angles, so far from the middle."""
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1).astype(np.float32)


def regular(corners: int, first: float = -math.pi / 2) -> Floats:
    """Corners on the unit circle, evenly spread, the first of them up."""
    return polar(np.linspace(first, first + 2 * math.pi, corners, endpoint=False), 1.0)


def star(rng: np.random.Generator) -> Polygons:
    """Five points, one up."""
    edge = regular(10)
    edge[1::2] *= np.float32(rng.uniform(0.4, 0.5))
    return (edge,)


def cross(rng: np.random.Generator) -> Polygons:
    """Four arms, each a quarter to two fifths as wide as the whole."""
    arm = rng.uniform(0.25, 0.4)
    quarter = np.array([[arm, -1], [arm, -arm], [1, -arm]], dtype=np.float32)
    turns = [np.array([[c, -s], [s, c]], dtype=np.float32) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return (np.concatenate([quarter @ turn.T for turn in turns]),)


def crescent(rng: np.random.Generator) -> Polygons:
    """A disc less a smaller disc off its centre."""
    bite, offset = rng.uniform(0.7, 0.85), rng.uniform(0.45, 0.6)
    meet_x = (1 - bite**2 + offset**2) / (2 * offset)
    outer = math.acos(meet_x)
    inner = math.atan2(math.sin(outer), meet_x - offset)
    away = polar(np.linspace(outer, 2 * math.pi - outer, 20), 1.0)
    back = polar(np.linspace(2 * math.pi - inner, inner, 20), bite)
    return (np.concatenate([away, back + np.array([offset, 0], dtype=np.float32)]),)


def transform(polygons: Polygons, radius_px: float, stretch: float, angle: float) -> Polygons:
    """Scale by ``radius_px``, stretch x against y by ``stretch`` at equal area, then rotate by ``angle``."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    scale = np.diag([radius_px * math.sqrt(stretch), radius_px / math.sqrt(stretch)])
    return tuple(polygon @ (turn @ scale).T.astype(np.float32) for polygon in polygons)


def stencil(polygons: Polygons, softness_px: float) -> Floats:
    """Rasterise one object, anti-aliased: ``(h, w)`` coverage in 0-1, with an empty margin for the blur.

    Polygons are in pixels, anywhere in the plane; ``softness_px`` is the sigma of the blur of the edge.
    """
    margin = 1 + math.ceil(2.5 * softness_px)
    low = np.floor(polygons[0].min(axis=0)) - margin
    width, height = (np.ceil(polygons[0].max(axis=0)) + margin - low).astype(int).tolist()
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    for polygon, fill in zip(polygons, (255, *[0] * len(polygons)), strict=False):
        draw.polygon(((polygon - low) * SUPERSAMPLING).ravel().tolist(), fill=fill)  # Pillow rounds down
    return as_floats(mask.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(softness_px)))


def shading(mask: Floats, opacity: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Vary the paint inside one object: a gradient, a rim, a darker or paler nucleus; each in a third."""
    cover, shade = mask * np.float32(opacity), np.ones_like(mask)
    height, width = mask.shape
    has_gradient, has_rim, has_nucleus = rng.random(3) < 1 / 3
    if has_gradient:
        slope = np.float32(rng.uniform(0.1, 0.35) / max(height, width))
        shade += slope * along(rng.uniform(0, 2 * math.pi), width, height)
    if has_rim:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.8, 2))
        blurred = as_floats(Image.fromarray((mask * 255).astype(np.uint8)).filter(blur))
        rim = np.clip(2 * (mask - blurred), 0, 1)
        shade *= 1 + rim * np.float32(rng.choice((-0.6, -0.4, 0.3)))
        cover += (mask - cover) * rim
    if has_nucleus:
        x, y = along(0, width, height) / width, along(math.pi / 2, width, height) / height
        centre_x, centre_y = rng.uniform(-0.25, 0.25, 2).tolist()
        nucleus = np.clip((rng.uniform(0.25, 0.5) - np.hypot(x - centre_x, y - centre_y)) * 8, 0, 1)
        shade *= 1 + nucleus * np.float32(rng.choice((-0.55, -0.4, -0.25, 0.2)))
        cover += (mask - cover) * nucleus
    return cover, shade


def as_floats(image: Image.Image) -> Floats:
    """An 8-bit image as ``(h, w)`` or ``(h, w, 3)`` float32 in 0-1."""
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def rgb(hue_degrees: float, saturation: float, value: float) -> Floats:
    """One colour, ``(3,)``; the hue may lie outside 0-360."""
    return np.array(colorsys.hsv_to_rgb(hue_degrees / 360 % 1, saturation, value), dtype=np.float32)


def along(angle: float, width: int, height: int) -> Floats:
    """Twice the distance in pixels from the middle, in the direction of ``angle``."""
    x = np.arange(width, dtype=np.float32) * 2 - width
    y = np.arange(height, dtype=np.float32)[:, None] * 2 - height
    return np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y


def stripes(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Parallel bands, 5 to 14 pixels wide, in any direction."""
    phase = along(rng.uniform(0, math.pi), width, height) * np.float32(math.pi / rng.uniform(10, 28))
    bands: Floats = np.clip(3 * np.sin(phase) + 0.5, 0, 1)
    return bands


def checkerboard(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Squares of 8 to 20 pixels."""
    side = int(rng.integers(8, 21))
    rows, columns = np.arange(height)[:, None] // side, np.arange(width) // side
    return ((rows + columns) % 2).astype(np.float32)


def dots(rng: np.random.Generator, width: int, height: int) -> Floats:
    """A grid of round dots, 9 to 18 pixels apart."""
    pitch = rng.uniform(9, 18)
    x = np.sin(np.arange(width, dtype=np.float32) * np.float32(math.pi / pitch)) ** 2
    y = np.sin(np.arange(height, dtype=np.float32) * np.float32(math.pi / pitch)) ** 2
    grid: Floats = np.clip((x * y[:, None] - 0.6) * 6, 0, 1)
    return grid


def distractors(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Opacity in 0-0.5 of what is no object: thin lines, writing-like strokes or a faint blob."""
    overlay = Image.new("L", (width, height))
    draw = ImageDraw.Draw(overlay)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    kind = int(rng.integers(3))
    if kind == 0:
        for ends in rng.uniform(0, 1, (int(rng.integers(1, 4)), 4)) * (width, height, width, height):
            draw.line(ends.tolist(), fill=int(rng.integers(60, 128)), width=int(rng.integers(1, 3)))
    elif kind == 1:
        pen = rng.uniform(-3, 3, (int(rng.integers(8, 25)), 2)) + (x, y)
        pen[:, 0] += np.arange(len(pen)) * 1.6
        draw.line(pen.ravel().tolist(), fill=int(rng.integers(60, 128)), width=1)
    else:
        half = rng.uniform(4, 20, 2)
        draw.ellipse((x - half[0], y - half[1], x + half[0], y + half[1]), fill=int(rng.integers(15, 38)))
        overlay = overlay.filter(ImageFilter.GaussianBlur(rng.uniform(3, 7)))
    return as_floats(overlay)


def photograph(pixels: Floats, wear: float, rng: np.random.Generator) -> Image.Image:
    """Take the RGB picture of ``(h, w, 3)`` pixels, with a camera that has seen better days.

    A wear of 0 changes nothing; at 1 brightness varies by 18 %, a channel by 3 %, and each of noise (to 4 %),
    blur (sigma to 1 px) and JPEG compression (down to quality 40) strikes two pictures in five.
    """
    gain = 1 + wear * (rng.uniform(-0.18, 0.18) + rng.uniform(-0.03, 0.03, 3))
    pixels = pixels * gain.astype(np.float32)
    has_noise, has_blur, is_compressed = rng.random(3) < 0.4 * wear
    if has_noise:
        pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(wear * rng.uniform(0.005, 0.04))
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    if has_blur:
        image = image.filter(ImageFilter.GaussianBlur(wear * rng.uniform(0.3, 1.0)))
    if is_compressed:
        compressed = io.BytesIO()
        image.save(compressed, "JPEG", quality=int(95 - wear * rng.integers(56)))
        image = Image.open(compressed).convert("RGB")
    return image
