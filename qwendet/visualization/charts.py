"""Bar charts and heat maps as PNG, with names in any script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qwendet.files import atomic_file
from qwendet.visualization.fonts import families_for

WIDTH, HEIGHT, ROW = 7.2, 4.2, 0.24  # inches, of 100 pixels each
MOST_TICKS = 8


def save_histogram(
    target: Path, title: str, counts: Sequence[int], names: Sequence[str], note: str = ""
) -> None:
    """Draw upright bars; where there is no room for all their names, only some are shown."""
    step = -(-len(names) // MOST_TICKS) or 1
    with _axes(target, title, HEIGHT, names) as (axes, drawn):
        axes.bar(range(len(counts)), counts)
        axes.set_xticks(range(0, len(names), step), drawn[::step])
        axes.set_xlabel(note)


def save_bars(target: Path, title: str, names: Sequence[str], counts: Sequence[int]) -> None:
    """Draw lying bars, one below the other, each with its name and count."""
    with _axes(target, title, 1 + ROW * len(names), names) as (axes, drawn):
        bars = axes.barh(range(len(counts)), counts)
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
        axes.set_yticks(range(len(names)), drawn)
        axes.invert_yaxis()


def save_heat_map(target: Path, title: str, counts: NDArray[np.int64], note: str = "") -> None:
    """Draw a grid, darker where there is more."""
    with _axes(target, title, HEIGHT, ()) as (axes, _):
        axes.imshow(counts, cmap="Blues", extent=(0, 1, 1, 0))
        axes.set_xlabel(note)


@contextmanager
def _axes(target: Path, title: str, height: float, names: Sequence[str]) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw into, and names as the fonts that are here can show them; then the file is written."""
    families, drawn = families_for(names)
    # A label's dollar signs are no formula.
    with matplotlib.rc_context({"font.family": families, "text.parse_math": False}):
        figure = Figure((WIDTH, height), dpi=100, layout="constrained")
        axes = figure.add_subplot(title=title)
        yield axes, drawn
        with atomic_file(target) as path:
            figure.savefig(path, format="png")
