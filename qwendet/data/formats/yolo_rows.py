"""A line of a YOLO label file: box or polygon, and never a polygon made of other columns.

    class x y width height                            a box
    class x1 y1 x2 y2 x3 y3 …                         a polygon, or an oriented box
    class x y width height [confidence [id]] [px py [visible]] …    a tracker's columns, key points

Nothing in a line says which of the last two it is. So the lines of the whole set are looked at. Columns begin
with a box that lies in the image, and their points lie in that box, in nearly every line; so does a quarter
of polygons, by chance. Of a few lines all may, and these are refused: ``task: segment`` says what they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from qwendet.data.formats.records import Box
from qwendet.errors import DataError
from qwendet.files import read_text

FRACTION_LIMIT = 2.0
"""Above it a number is no fraction with a slip, but a pixel."""
EDGE = 0.01
"""Share of the image by which a box drawn by hand may leave it."""
SLACK = 0.05
"""Share of a box by which its points may lie outside, and of a quadrangle by which it is no oriented box."""
MOSTLY = 0.9
"""Share of the long lines that must look like columns."""
MANY_LINES = 8
"""Long lines that do not all look like columns by chance."""
MAX_LINES = 2_000
"""Long lines that are looked at."""
COLUMNS_FIX = (
    "for key points, write kpt_shape into the settings ([points, numbers of each]); for polygons, write "
    "task: segment; else cut the line off behind its fifth number"
)


def numbered_lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    lines = enumerate(read_text(file).splitlines(), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def numbers_of(line: str, where: str) -> list[float]:
    """The numbers of a line."""
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"expected numbers, got {line.strip()[:60]!r}", where, "correct the line")
    return numbers


def corners_of(values: Sequence[float], where: str, *, polygons: bool) -> tuple[Box, Sequence[float]]:
    """Corners, as fractions, of a centre with sizes or of a polygon; and the polygon."""
    if len(values) == 4:
        x, y, width, height = values
        if width < 0 or height < 0:
            what = f"expected sizes of at least 0, got {width:g} and {height:g}"
            raise DataError(what, where, "correct the line")
        return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), ()
    could_be = is_long(values)
    if could_be and polygons and max(map(abs, values)) <= FRACTION_LIMIT:
        return (min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])), values
    what = f"expected a class index and four numbers, or a polygon, got {len(values) + 1} numbers"
    if could_be:
        what = f"expected four numbers or a polygon, got a box and {len(values) - 4} numbers more"
    fix = COLUMNS_FIX if len(values) > 5 else "correct the line"
    if len(values) == 5:
        fix = "a sixth number is a detector's confidence: predictions are no ground truth"
    raise DataError(what, where, fix)


def is_long(values: Sequence[float]) -> bool:
    """Whether the numbers after the class could be a polygon's."""
    return len(values) >= 6 and len(values) % 2 == 0


def are_polygons(files: Iterable[Path]) -> bool:
    """Whether the long lines of label files are polygons, judged by the first ``MAX_LINES`` of them."""
    found = list(islice(_long_rows(files), MAX_LINES))
    lengths = {len(row) for row in found}
    is_few = len(found) < MANY_LINES
    if any(-1 in row for row in found):  # a key point that is not seen, or a tracker's empty column
        return False
    if (is_few and len(lengths) > 1) or all(map(_is_oriented_box, found)):
        return True
    columns = zip(*(row[4:] for row in found), strict=True) if len(lengths) == 1 and not is_few else ()
    has_flags = any(all(value.is_integer() for value in column) for column in columns)
    return not has_flags and sum(map(_is_box_with_points, found)) < MOSTLY * len(found)


def _long_rows(files: Iterable[Path]) -> Iterator[list[float]]:
    """Numbers after the class of lines that could be polygons; what cannot be read is reported elsewhere."""
    for file in files:
        with suppress(DataError):
            for _, line in numbered_lines(file):
                with suppress(DataError):
                    values = numbers_of(line, "")[1:]
                    if is_long(values):
                        yield values


def _is_box_with_points(row: Sequence[float]) -> bool:
    """Whether a row begins with a box, and points lie in it, those apart that are marked (0, 0).

    Two numbers alone may be a tracker's as well, and need not be a point.
    """
    x, y, width, height = row[:4]
    for centre, side in ((x, width), (y, height)):
        if side <= 0 or centre - side / 2 < -EDGE or centre + side / 2 > 1 + EDGE:
            return False
    if len(row) == 6 or max(row[4:]) > 1 + EDGE:
        return True
    return any(  # without or with visibility; a confidence may come last
        all(
            max(abs(px - x) / width, abs(py - y) / height) <= 0.5 + SLACK
            for px, py, _ in zip(row[4::step], row[5::step], row[3 + step :: step], strict=False)
            if (px, py) != (0, 0)
        )
        for step in (2, 3)
    )


def _is_oriented_box(row: Sequence[float]) -> bool:
    """Whether four corners are a parallelogram, as a turned rectangle is in fractions of the image."""
    return len(row) == 8 and all(
        abs(row[at] - row[at + 2] + row[at + 4] - row[at + 6]) <= SLACK * (max(row[at::2]) - min(row[at::2]))
        for at in (0, 1)
    )
