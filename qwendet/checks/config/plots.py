"""Pictures of a data set: boxes an image, their sizes and shapes, labels, where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from qwendet.checks.config.frames import Floats, box_table, sides_px
from qwendet.checks.config.samples import Split
from qwendet.checks.config.stats import SplitStats, label_totals
from qwendet.visualization.charts import save_bars, save_heat_map, save_histogram

MOST_BOXES = 30
SIZE_EDGES_PX = (0, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024)
ASPECT_EDGES = (0.0, 1 / 8, 1 / 4, 1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2.0, 4.0, 8.0)
ASPECT_NAMES = ("<1:8", "1:8", "1:4", "1:2", "2:3", "1:1", "5:4", "3:2", "2:1", "4:1", ">8:1")
GRID = 32
MAX_LABELS = 60


def save_plots(splits: Mapping[Split, SplitStats], folder: Path) -> list[Path]:
    """Write a PNG of each kind for all files together."""
    rows = np.concatenate([box_table(stats) for stats in splits.values()])
    names = ("boxes_per_image", "box_sizes", "aspect_ratios", "labels", "positions")
    files = {name: folder / f"{name}.png" for name in names}
    _boxes_per_image(splits.values(), files["boxes_per_image"])
    _sizes(rows, files["box_sizes"])
    _aspects(rows, files["aspect_ratios"])
    _labels(splits.values(), files["labels"])
    _positions(rows, files["positions"])
    return list(files.values())


def _boxes_per_image(splits: Iterable[SplitStats], target: Path) -> None:
    counts: Counter[int] = Counter()
    for stats in splits:
        boxes = Counter(box_table(stats)[:, 6].tolist())
        lines = [seen.line for seen in stats.images if not seen.is_demonstration]
        counts.update(min(boxes[float(line)], MOST_BOXES) for line in lines)
    highest = max(counts, default=0)
    names = [str(number) if number < MOST_BOXES else f"{MOST_BOXES}+" for number in range(highest + 1)]
    bars = [counts[number] for number in range(highest + 1)]
    save_histogram(target, "Boxes of an image", bars, names, f"{counts.total():,} images")


def _sizes(rows: Floats, target: Path) -> None:
    counts, _ = np.histogram(sides_px(rows), (*SIZE_EDGES_PX, np.inf))
    names = [str(edge) for edge in SIZE_EDGES_PX]
    note = f"square root of the area, from so many pixels on; {len(rows):,} boxes"
    save_histogram(target, "Sizes of boxes", counts.tolist(), names, note)


def _aspects(rows: Floats, target: Path) -> None:
    widths, heights = rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1]
    real = (widths > 0) & (heights > 0)
    counts, _ = np.histogram(widths[real] / heights[real], (*ASPECT_EDGES, np.inf))
    note = "width : height, from this ratio on; upright boxes on the left"
    save_histogram(target, "Shapes of boxes", counts.tolist(), ASPECT_NAMES, note)


def _labels(splits: Iterable[SplitStats], target: Path) -> None:
    totals = label_totals(splits)
    shown = totals.most_common(MAX_LABELS)
    more = f" (the first {MAX_LABELS} of {len(totals)} labels)" if len(totals) > MAX_LABELS else ""
    save_bars(target, f"Boxes of each label{more}", [name for name, _ in shown], [n for _, n in shown])


def _positions(rows: Floats, target: Path) -> None:
    rows = rows[(rows[:, 4] > 0) & (rows[:, 5] > 0)]
    centers = (rows[:, :2] + rows[:, 2:4]) / 2 / rows[:, 4:6]
    grid, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], GRID, ((0, 1), (0, 1)))
    note = f"shares of width and height, {len(rows):,} boxes"
    save_heat_map(target, "Where the centres of boxes lie", grid.astype(np.int64), note)
