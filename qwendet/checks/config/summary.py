"""A data set in figures: samples, boxes of each label, sizes of boxes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qwendet.checks.config.frames import box_table, sides_px
from qwendet.checks.config.samples import Split
from qwendet.checks.config.stats import SplitStats, label_totals
from qwendet.checks.runner import Table

SMALL_PX, LARGE_PX = 32, 96
"""Sides of squares whose areas part small, medium and large boxes, as COCO does."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MAX_LABELS = 30


def summary_tables(splits: Mapping[Split, SplitStats]) -> list[Table]:
    """Tables of what was seen, for people; files without samples are left out."""
    splits = {split: stats for split, stats in splits.items() if stats.num_parsed}
    return [_samples(splits), _labels(splits), _sizes(splits)] if splits else []


def _samples(splits: Mapping[Split, SplitStats]) -> Table:
    columns = ("split", "samples", "images", "without boxes", "with teachers", "boxes")
    rows = []
    for split, stats in splits.items():
        sides = sides_px(box_table(stats))
        small, large = int((sides < SMALL_PX).sum()), int((sides >= LARGE_PX).sum())
        images = len({seen.file_id for seen in stats.images})
        counts = (stats.num_samples, images, stats.num_negatives, stats.num_with_teachers, stats.num_boxes)
        rows.append((split, *counts, small, len(sides) - small - large, large))
    return Table("Data (box sizes as COCO: 32² and 96² pixels)", (*columns, "small", "medium", "large"), rows)


def _labels(splits: Mapping[Split, SplitStats]) -> Table:
    totals = label_totals(splits.values())
    shown = sorted(totals, key=lambda label: (-totals[label], label))[:MAX_LABELS]
    rows: list[tuple[object, ...]] = [
        (label, *(stats.labels[label].num_boxes if label in stats.labels else 0 for stats in splits.values()))
        for label in shown
    ]
    if len(totals) > MAX_LABELS:
        rows.append((f"and {len(totals) - MAX_LABELS} more labels", *("" for _ in splits)))
    return Table("Boxes of each label", ("label", *splits), rows)


def _sizes(splits: Mapping[Split, SplitStats]) -> Table:
    """Quantiles of the square root of a box's area, and of its share of the image."""
    rows: list[tuple[object, ...]] = []
    for split, stats in splits.items():
        table = box_table(stats)
        sides, images = sides_px(table), np.prod(table[:, 4:6], axis=1)
        shares = sides[images > 0] / np.sqrt(images[images > 0])
        for name, values in (("side, pixels", sides), ("side, share of the image", shares)):
            if len(values):
                rows.append((split, name, *(_short(value) for value in np.quantile(values, QUANTILES))))
    names = ("least", *(f"{quantile:.0%}" for quantile in QUANTILES[1:-1]), "most")
    return Table("Box sizes (square root of the area)", ("split", "size", *names), rows)


def _short(value: float) -> int | float:
    """Whole pixels, but shares as they are."""
    return round(value) if value > 1 else float(value)
