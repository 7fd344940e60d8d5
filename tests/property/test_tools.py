"""Files of annotation tools: what was written is read, and junk is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.property.test_round_trips import MAX_ERROR, SIZES, boxes, content, labels, png
from tests.unit.data.tool_files import NO_FLAGS, WRITERS, Boxed, Pictured

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
