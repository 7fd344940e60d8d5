"""Lines of YOLO labels: polygons are read; a box with further columns is refused, never taken for one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Problem, Record
from qwendet.data.formats.yolo_rows import are_polygons
from tests.unit.data.test_yolo import small

BOX = "0 0.28 0.46 0.31 0.42"
PERSON = "0.3 0.3 0.32 0.28 0.27 0.28 0 0 0.24 0.3 0.36 0.4 0.2 0.4 0.4 0.5 0.16 0.5 0.38 0.58 0.2 0.6"
TRIANGLE, STAR = "0 0.45 0.45 0.5 0.46 0.51 0.52", "0 0.3 0.3 0.6 0.3 0.6 0.6 0.45 0.45 0.3 0.6"
CIRCLE = " ".join(f"{0.5 + 0.1 * f(a / 5):.4f}" for a in range(31) for f in (math.cos, math.sin))
COLUMNS = {
    "tracker: confidence, id": [f"{BOX} 0.9 1"],
    "tracker: confidence, high id": [f"{BOX} 0.9 17"],
    "tracker: ids of many": [f"0 0.{x} 0.4 0.1 0.2 0.9{x} {x}" for x in range(20, 40)],
    "two more numbers": [f"{BOX} 0.35 0.5"],
    "flags of many": [f"0 0.{x} 0.5 0.2 0.3 0 {x % 2} 1 0" for x in range(20, 40)],
    "flags": [f"{BOX} 0 1", f"{BOX} 1 0"],
    "plate: corners": [f"{BOX} 0.13 0.26 0.43 0.26 0.43 0.66 0.13 0.66"],
    "plate: corners, another start": [f"{BOX} 0.43 0.66 0.13 0.66 0.13 0.26 0.43 0.26"],
    "face: five landmarks": [f"{BOX} 0.22 0.38 0.34 0.38 0.28 0.46 0.23 0.56 0.33 0.56"],
    "face: one of them unseen": [f"{BOX} 0.22 0.38 0 0 0.28 0.46 0.23 0.56 0.33 0.56"],
    "face: unseen ones marked -1": [f"{BOX} -1 -1 -1 -1 0.28 0.46 -1 -1 -1 -1", f"{BOX} {'-1 ' * 10}"],
    "head and tail": [f"{BOX} 0.2 0.4 0.36 0.5"],
    "head and tail, with visibility": [f"{BOX} 0.2 0.4 2 0.36 0.5 1"],
    "person: visibility, an even number of points": [f"{BOX} {' '.join(['0.2 0.3 2', '0.35 0.6 2'] * 9)}"],
    "person: points alone": [f"{BOX} {PERSON}"],
    "boxes among them": [BOX, f"{BOX} 0.9 1", BOX],
    "pose of a detector, and its confidence": [f"{BOX} 0.2 0.3 0.91 0.35 0.6 0.82 0.88 0.12"],
}
POLYGONS = {
    "triangle at the edge": ["0 0.1 0.2 0.3 0.25 0.2 0.9"],
    "quadrangle": ["0 0.1 0.1 0.5 0.12 0.52 0.6 0.08 0.58"],
    "oriented box": ["0 0.4 0.3 0.5 0.35 0.45 0.45 0.35 0.4"],
    "oriented boxes in the middle": [
        f"0 0.4 0.{y} 0.5 0.{y} 0.5 0.{y + 9} 0.4 0.{y + 9}" for y in range(30, 50)
    ],
    "a corner turned in": [STAR],
    "of different numbers of corners": [TRIANGLE, STAR],
    "beside boxes": [BOX, "0 0.1 0.1 0.5 0.12 0.52 0.6 0.08 0.58"],
    "to the edges": ["0 0 0 1 0 1 1 0.5 0.7 0 1"],
}  # fmt: skip


def read(folder: Path, lines: list[str], **settings: str) -> tuple[list[list[float]], list[Problem]]:
    small(folder, *lines, **settings)
    items = list(open_source(folder, "yolo").items)
    boxes = [list(found.bbox_2d) for item in items if isinstance(item, Record)
             for found in item.turn.objects]  # fmt: skip
    return boxes, [item for item in items if isinstance(item, Problem)]


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns__are_refused(tmp_path: Path, kind: str) -> None:
    boxes, problems = read(tmp_path, COLUMNS[kind])
    assert boxes == []
    assert "numbers" in problems[0].what
    assert "kpt_shape" in problems[0].fix


@pytest.mark.parametrize("kind", POLYGONS)
def test_polygons__give_their_boxes(tmp_path: Path, kind: str) -> None:
    boxes, problems = read(tmp_path, POLYGONS[kind])
    assert problems == []
    expected = []
    for line in POLYGONS[kind]:
        if line != BOX:
            numbers = [float(word) for word in line.split()[1:]]
            xs, ys = numbers[0::2], numbers[1::2]
            expected.append([min(xs) * 80, min(ys) * 40, max(xs) * 80, max(ys) * 40])
    assert [box for box in boxes if box != pytest.approx([10, 10, 34.8, 26.8])] == [
        pytest.approx(box) for box in expected
    ]


def test_polygon__a_single_one_amid_the_image(tmp_path: Path) -> None:
    """Nothing tells it from columns: it is refused, and read once the settings say what it is."""
    lines = [f"0 {CIRCLE}"]
    boxes, (problem,) = read(tmp_path, lines)
    assert (boxes, "for polygons, write task: segment" in problem.fix) == ([], True)
    ((x1, y1, x2, y2),), problems = read(tmp_path, lines, task="segment")
    assert [x1, y1, x2, y2] == pytest.approx([32, 16, 48, 24], abs=0.2)
    assert problems == []


def test_columns__of_two_kinds(tmp_path: Path) -> None:
    """Plates and faces in one set: of different lengths, and yet no polygons."""
    chance = random.Random(1)
    boxes, problems = read(tmp_path, [key_points(count, chance) for count in (4, 5) * 5])
    assert (boxes, len(problems)) == ([], 1)


def test_columns__are_those_of_the_whole_set(tmp_path: Path) -> None:
    """One file alone could hold a polygon; the others say that it does not."""
    lines = [f"0 0.{30 + n} 0.4 0.2 0.3 0.{28 + n} 0.3{n} 0.{33 + n} 0.4{n}" for n in range(9)]
    for number, line in enumerate(lines):
        (tmp_path / f"{number}.txt").write_text(line)
    assert are_polygons(sorted(tmp_path.glob("*.txt"))) is False
    (tmp_path / "a.txt").write_text("0 0.1 0.1 0.5 0.12 0.52 0.6 0.3 0.5 0.08 0.58\n" * 3)
    assert are_polygons(sorted(tmp_path.glob("*.txt"))) is True


def polygon(corners: int, chance: random.Random) -> str:
    """A star-shaped polygon of a random place, size and start."""
    side = 10 ** chance.uniform(-1.5, -0.1)
    x, y = (chance.uniform(side / 2, 1 - side / 2) for _ in range(2))
    start = chance.uniform(0, 2 * math.pi)
    numbers = []
    for corner in range(corners):
        angle, radius = start + 2 * math.pi * corner / corners, side / 2 * chance.uniform(0.7, 1)
        numbers += [x + radius * math.cos(angle), y + radius * math.sin(angle)]
    return " ".join(["0", *(f"{number:.6f}" for number in numbers)])


def key_points(points: int, chance: random.Random) -> str:
    """A box in the image and points all over it."""
    width, height = (10 ** chance.uniform(-1.3, -0.2) for _ in range(2))
    x, y = (chance.uniform(side / 2, 1 - side / 2) for side in (width, height))
    places = [
        (x + width * chance.uniform(-0.5, 0.5), y + height * chance.uniform(-0.5, 0.5)) for _ in range(points)
    ]
    return " ".join(["0", *(f"{number:.6f}" for number in (x, y, width, height, *sum(places, ())))])


@given(count=st.integers(4, 30), seed=st.integers(0, 10_000), make=st.sampled_from([polygon, key_points]))
def test_twenty_lines__are_told_apart(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, make: Callable[[int, random.Random], str]
) -> None:
    """Sets of one number of columns each, the hardest kind: of twenty lines not one set is misjudged."""
    chance = random.Random(seed)
    file = tmp_path_factory.getbasetemp() / "lines.txt"
    file.write_text("\n".join(make(count, chance) for _ in range(20)))
    assert are_polygons([file]) is (make is polygon)
