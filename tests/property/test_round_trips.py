"""Every format into every other and back: boxes, labels, sizes, flags, splits and negatives survive."""

from __future__ import annotations

import itertools
import json
import string
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qwendet.data.formats.convert import Conversion, convert_dataset
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Record
from qwendet.errors import Problem

FORMATS = ("jsonl", "coco", "voc", "yolo")
SIZES = ((64, 48), (37, 211), (640, 480))
MAX_ERROR = 0.001
"""Pixels; half a pixel is what must hold."""

letters = st.text(
    st.sampled_from(string.ascii_letters + string.digits + " _-.,:;'\"#&<>/[]{}éüßñЖ日本語🦆"), min_size=1
)
labels = letters.map(str.strip).filter(bool)
names = st.text(st.sampled_from("aB9 _-é日#&'"), min_size=1, max_size=8).map(str.strip).filter(bool)


@st.composite
def boxes(draw: st.DrawFn, size: tuple[int, int]) -> list[float]:
    """A box inside an image; on its edge, of a fraction of a pixel, or whole."""
    corners: list[list[float]] = []
    for side in size:
        number = st.one_of(st.integers(0, side), st.floats(0, side).map(lambda value: round(value, 2)))
        low, high = sorted((draw(number), draw(number)))
        corners.append([low, high] if high - low >= 0.1 else [0, side])
    (x1, x2), (y1, y2) = corners
    return [x1, y1, x2, y2]


@st.composite
def samples(draw: st.DrawFn) -> tuple[str, str, tuple[int, int], list[dict[str, Any]]]:
    """Split, image name, size, objects."""
    split = draw(st.sampled_from(["train", "val", "test"]))
    size = draw(st.sampled_from(SIZES))
    name = draw(st.sampled_from(["", "sub/", "sub/images/", "labels/"])) + draw(names) + ".png"
    objects = [
        {
            "bbox_2d": draw(boxes(size)),
            "desc": draw(labels),
            "crowd": draw(st.booleans()),
            "difficult": draw(st.booleans()),
        }
        for _ in range(draw(st.integers(0, 4)))
    ]
    return split, name, size, objects


@cache
def png(size: tuple[int, int]) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    Image.new("RGB", size).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, drawn: list[tuple[str, str, tuple[int, int], list[dict[str, Any]]]]) -> None:
    for split, name, size, objects in drawn:
        file = folder / split / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(size))
        record = {"images": [f"{split}/{name}"], "objects": objects}
        with (folder / f"{split}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


Content = list[tuple[str, tuple[int, int], list[tuple[str, bool, bool]], list[tuple[float, ...]]]]


def content(folder: Path) -> Content:
    """What a data set says, without the names that images were given."""
    found: Content = []
    for item in open_source(folder).items:
        assert not isinstance(item, Problem), item
        if isinstance(item, Record):
            turn = item.turn
            facts = [(o.desc, o.crowd, o.difficult) for o in turn.objects]
            assert turn.width is not None
            assert turn.height is not None
            found.append((item.split, (turn.width, turn.height), facts, [o.bbox_2d for o in turn.objects]))
    return sorted(
        found, key=lambda entry: (entry[:2], entry[2], [[round(x, 1) for x in b] for b in entry[3]])
    )


def assert_same(found: Content, expected: Content) -> None:
    assert [entry[:3] for entry in found] == [entry[:3] for entry in expected]
    for left, right in zip(found, expected, strict=True):
        for box, other in zip(left[3], right[3], strict=True):
            assert box == pytest.approx(other, abs=MAX_ERROR)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=st.lists(
        samples(), min_size=1, max_size=5, unique_by=lambda drawn: (drawn[0], drawn[1].casefold())
    ),
    path=st.sampled_from(list(itertools.permutations(FORMATS[1:]))),
)
def test_all_formats__in_any_order(
    drawn: list[Any], path: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """JSONL through the three others and back, by every edge between formats."""
    folder = tmp_path_factory.mktemp("trip")
    write(folder / "0", drawn)
    original = content(folder / "0")
    route = [*path, path[0], "jsonl"]
    for step, target in enumerate(route):
        source = "auto" if step else "jsonl"
        report = convert_dataset(
            folder / str(step),
            folder / str(step + 1),
            Conversion(source, target=target),  # type: ignore[arg-type]
        )
        assert report.findings.keys() <= {"placed_as", "repeated"}
        assert_same(content(folder / str(step + 1)), original)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(FORMATS, FORMATS[1:])))
def test_each_direction__keeps_everything(source: str, target: str, tmp_path: Path) -> None:
    objects = [
        {"bbox_2d": [0, 0, 64, 48], "desc": "whole", "crowd": True},
        {"bbox_2d": [1.25, 2.5, 30.75, 40.125], "desc": "日本語 & <b>", "difficult": True},
        {"bbox_2d": [63.5, 47.5, 64, 48], "desc": "corner"},
    ]
    write(tmp_path / "0", [("train", "a.png", (64, 48), objects), ("val", "a.png", (37, 211), [])])
    if source != "jsonl":
        how = Conversion("jsonl", target=source)  # type: ignore[arg-type]
        convert_dataset(tmp_path / "0", tmp_path / "1", how)
    start = tmp_path / ("0" if source == "jsonl" else "1")
    report = convert_dataset(start, tmp_path / "2", Conversion("auto", target=target))  # type: ignore[arg-type]
    assert report.findings.keys() <= {"placed_as"}
    assert report.images == {"train": 1, "val": 1}
    assert_same(content(tmp_path / "2"), content(tmp_path / "0"))
