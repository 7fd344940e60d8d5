"""Samples into the conversations of other tools and back: boxes, labels, splits and negatives survive."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.records import Target
from qwendet.data.samples import SampleFile
from tests.property.test_round_trips import samples, write

Drawn = tuple[str, str, tuple[int, int], list[dict[str, Any]]]
PART: dict[Target, float] = {"swift": 0, "llamafactory": 0.5 / 1000}
"""Of a side, by which rounding moves an edge."""


def without_flags(drawn: Drawn) -> Drawn:
    split, name, size, objects = drawn
    return split, name, size, [{"bbox_2d": item["bbox_2d"], "desc": item["desc"]} for item in objects]


@pytest.mark.parametrize("target", PART)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.lists(samples().map(without_flags), min_size=1, max_size=4, unique_by=lambda one: one[:2]))
def test_conversations__and_back(target: Target, drawn: list[Drawn]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second, third = (Path(folder) / name for name in ("first", "second", "third"))
        write(first, drawn)
        convert_dataset(first, second, Conversion("jsonl", target))
        convert_dataset(second, third, Conversion(frame="thousandths"))
        for split in {split for split, *_ in drawn}:
            before, after = (list(SampleFile(at / f"{split}.jsonl")) for at in (first, third))
            assert len(before) == len(after)
            for old, new in zip(before, after, strict=True):
                compare(old.student.objects, new.student, PART[target])


def compare(old: Any, turn: Any, part: float) -> None:
    assert turn.declared_size is not None
    width, height = turn.declared_size
    order = sorted if part else list  # answers that the tool takes as they are go from top to bottom
    wanted, found = (order(item.desc for item in items) for items in (old, turn.objects))
    assert wanted == found
    if part == 0:
        for before, after in zip(old, turn.objects, strict=True):
            assert before.bbox_2d == pytest.approx(after.bbox_2d, abs=0.001)
        return
    tolerance = (2 * part * width + 0.001, 2 * part * height + 0.001) * 2  # a sliver is one unit wide
    left = list(turn.objects)
    for before in old:
        near = [item for item in left if item.desc == before.desc and all(
            abs(a - b) <= most for a, b, most in zip(before.bbox_2d, item.bbox_2d, tolerance, strict=True)
        )]  # fmt: skip
        assert near, (before, turn.objects)
        left.remove(near[0])
