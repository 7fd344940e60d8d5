"""Windows cover their image, and what the overlap can hold lies whole in one of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwendet.data.windows import require_windows, window_size, windows_of
from qwendet.errors import ConfigError

SIZES = st.tuples(st.integers(2, 500), st.integers(2, 500))
TILES = st.one_of(
    st.integers(16, 300),
    st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda grid: "{}x{}".format(*grid)),
)
OVERLAPS = st.floats(0, 0.9)


@given(SIZES, TILES, OVERLAPS)
def test_windows_of__are_of_one_size_inside_and_cover_the_image(
    size: tuple[int, int], tiles: int | str, overlap: float
) -> None:
    windows = windows_of(size, tiles, overlap)
    assert {(x2 - x1, y2 - y1) for x1, y1, x2, y2 in windows} == {window_size(size, tiles, overlap)}
    for axis in (0, 1):
        spans = sorted({(window[axis], window[axis + 2]) for window in windows})
        assert spans[0][0] == 0
        assert spans[-1][1] == size[axis]
        assert all(start <= end for (_, end), (start, _) in pairwise(spans))
    assert len(windows) == len(set(windows))


@given(SIZES, TILES, OVERLAPS, st.data())
def test_windows_of__hold_whole_what_is_no_larger_than_the_overlap(
    size: tuple[int, int], tiles: int | str, overlap: float, data: st.DataObject
) -> None:
    window = window_size(size, tiles, overlap)
    box = []
    for length, side in zip(size, window, strict=True):
        most = length if side == length else max(1, int(side * overlap) - 1)
        start = data.draw(st.integers(0, length - most))
        box.append((start, start + most))
    (x1, x2), (y1, y2) = box
    holding = [
        w for w in windows_of(size, tiles, overlap) if w[0] <= x1 and w[1] <= y1 and w[2] >= x2 and w[3] >= y2
    ]
    small = all(int(side * overlap) > 1 or side == length for length, side in zip(size, window, strict=True))
    assert holding or not small


@pytest.mark.parametrize(
    ("size", "tiles", "overlap", "windows"),
    [
        ((300, 200), 300, 0.2, [(0, 0, 300, 200)]),
        ((300, 200), "1x1", 0.2, [(0, 0, 300, 200)]),
        ((301, 200), 300, 0.0, [(0, 0, 300, 200), (1, 0, 301, 200)]),
        ((90, 90), "2x1", 0.5, [(0, 0, 60, 90), (30, 0, 90, 90)]),
        ((2, 2), "5x1", 0.0, [(0, 0, 1, 2), (1, 0, 2, 2)]),
    ],
)
def test_windows_of__edges(
    size: tuple[int, int], tiles: int | str, overlap: float, windows: list[tuple[int, int, int, int]]
) -> None:
    assert windows_of(size, tiles, overlap) == windows


@pytest.mark.parametrize(
    ("sizes", "tiles", "words"),
    [
        ([(640, 480), (900, 100)], 900, "tiles of 900 would cut no image: the largest has 900x100 pixels"),
        ([(640, 480)], "1x1", "tiles of 1x1 would cut no image: the largest has 640x480 pixels"),
        ([(640, 480)], "40x1", "an image of 640x480 pixels would have windows of 20x480"),
        ([(640, 480)], 27, "an image of 640x480 pixels would have windows of 27x27"),
    ],
)
def test_require_windows__refuses_what_shows_nothing(
    sizes: list[tuple[int, int]], tiles: int | str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        require_windows(sizes, tiles, 0.2, 28, "--tiles")


def test_require_windows__takes_small_images_beside_large_ones() -> None:
    require_windows([(640, 480), (100, 20)], 300, 0.2, 28, "--tiles")
