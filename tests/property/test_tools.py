"""Files of annotation tools: what was written is read, and junk is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property.test_round_trips import MAX_ERROR, SIZES, boxes, content, labels, png
from tests.property.test_untrusted_annotations import HEIGHT, WIDTH, assert_sound, junk
from tests.unit.data.tool_files import NO_FLAGS, WRITERS, Boxed, Pictured, write_cvat

names = st.text(st.sampled_from("aB9_-é日#&"), min_size=1, max_size=8)


@st.composite
def pictures(draw: st.DrawFn) -> Pictured:
    size = draw(st.sampled_from(SIZES))
    own = [
        Boxed(draw(labels), draw(boxes(size)), draw(st.booleans())) for _ in range(draw(st.integers(0, 3)))
    ]
    return Pictured(f"{draw(names)}.png", size, own)


@pytest.mark.parametrize("tool", WRITERS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(pictures(), min_size=1, max_size=4, unique_by=lambda own: own.name.casefold()))
def test_what_a_tool_wrote__is_read(
    tool: str, drawn: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Boxes, labels, flags, sizes and images without boxes; recognised by looking."""
    if not any(own.boxes for own in drawn):
        drawn[0] = drawn[0]._replace(boxes=[Boxed("one", (1, 2, 30, 40))])
    folder = tmp_path_factory.mktemp(tool)
    (folder / "images").mkdir()
    for own in drawn:
        (folder / "images" / own.name).write_bytes(png(own.size))
    WRITERS[tool](folder, drawn)
    found = content(Path(folder))
    expected = sorted(
        [
            (
                "all",
                own.size,
                [(box.label, False, box.difficult and tool not in NO_FLAGS) for box in own.boxes],
                [box.box for box in own.boxes],
            )
            for own in drawn
        ],
        key=lambda entry: (entry[:2], entry[2], [[round(x, 1) for x in box] for box in entry[3]]),
    )
    assert [entry[:3] for entry in found] == [entry[:3] for entry in expected]
    for left, right in zip(found, expected, strict=True):
        for box, other in zip(left[3], right[3], strict=True):
            assert box == pytest.approx(other, abs=MAX_ERROR)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    for key in list(value if isinstance(value, dict) else range(len(value))):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@pytest.mark.parametrize("tool", [tool for tool in WRITERS if tool not in ("cvat", "via, csv")])
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), value=st.one_of(junk, st.just({}), st.lists(junk, max_size=2)))
def test_any_value_anywhere__gives_sound_records_or_data_errors(
    tool: str, at: int, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(png((WIDTH, HEIGHT)))
    boxes = [Boxed("one", (1, 2, 30, 20)), Boxed("two", (3.5, 4, 9, 9), difficult=True)]
    WRITERS[tool](folder, [Pictured("a.png", (WIDTH, HEIGHT), boxes)])
    file = next(file for file in sorted(folder.rglob("*.json")) if file.name != "meta.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    found = list(places(content))
    container, key = found[at % len(found)]
    container[key] = value
    file.write_text(json.dumps(content), encoding="utf-8")
    assert_sound(folder)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), text=st.one_of(st.text(max_size=5), junk.map(str)))
def test_cvat__any_text_anywhere(at: int, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "a.png").write_bytes(png((WIDTH, HEIGHT)))
    write_cvat(folder, [Pictured("a.png", (WIDTH, HEIGHT), [Boxed("one", (1, 2, 30, 20))])])
    xml = (folder / "annotations.xml").read_text(encoding="utf-8")
    values = list(re.finditer('"([^"]*)"', xml))
    start, end = values[at % len(values)].span(1)
    (folder / "annotations.xml").write_text(xml[:start] + text + xml[end:], encoding="utf-8", errors="ignore")
    assert_sound(folder)
