"""Whatever an annotation file holds, a reader yields records inside their images, or data errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwendet.data.formats.box_frames import BoxFrame
from qwendet.data.formats.detect import open_source
from qwendet.data.formats.records import Record
from qwendet.data.segmentation import extent
from qwendet.errors import DataError

WIDTH, HEIGHT = 40, 30

numbers = st.one_of(
    st.integers(-5, 50),
    st.floats(-5, 50),
    st.sampled_from([1e9, -1e9, 1e308, float("nan"), float("inf"), 10**400]),
)
junk = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5), st.lists(numbers, max_size=7))
boxes = st.one_of(st.lists(numbers, min_size=4, max_size=4), junk)
masks = st.fixed_dictionaries({"size": st.lists(numbers, max_size=3), "counts": st.one_of(junk, st.text())})
annotations = st.fixed_dictionaries(
    {},
    optional={
        "id": junk,
        "image_id": st.one_of(st.just(1), junk),
        "category_id": st.one_of(st.just(1), junk),
        "bbox": boxes,
        "segmentation": st.one_of(junk, st.lists(st.lists(numbers, max_size=8), max_size=2), masks),
        "iscrowd": st.one_of(st.integers(0, 1), junk),
        "ignore": junk,
    },
)
images = st.fixed_dictionaries(
    {"id": st.one_of(st.just(1), junk), "file_name": st.one_of(st.just("a.png"), junk)},
    optional={"width": junk, "height": junk},
)


def assert_sound(path: Path, frame: BoxFrame | None = None, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Go through all items; nothing but data errors may come, and no box or polygon may leave its image."""
    try:
        items = list(open_source(path, frame=frame).items)
    except DataError:
        return
    for item in items:
        if isinstance(item, Record):
            for found in item.turn.objects:
                x1, y1, x2, y2 = found.bbox_2d
                assert 0 <= x1 < x2 <= size[0]
                assert 0 <= y1 < y2 <= size[1]
                around = extent(found.segmentation) if found.segmentation else None
                if around is not None:
                    assert min(around) >= -0.01
                    assert all(at <= side + 0.01 for at, side in zip(around[2:], size, strict=True))


@given(
    content=st.one_of(
        st.fixed_dictionaries(
            {
                "images": st.lists(st.one_of(images, junk), max_size=3),
                "annotations": st.lists(st.one_of(annotations, junk), max_size=4),
                "categories": st.just([{"id": 1, "name": "cell"}]),
            }
        ),
        st.fixed_dictionaries({"images": junk, "annotations": junk, "categories": junk}),
    )
)
def test_coco(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("coco")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    assert_sound(folder)


lines = st.one_of(
    st.lists(numbers, max_size=9).map(lambda values: " ".join(map(str, values))),
    st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=8).map(lambda v: " ".join(map(str, [0, *v]))),
    st.text(max_size=20),
)


@given(text=st.lists(lines, max_size=4).map("\n".join), settings=st.one_of(st.none(), st.text(max_size=40)))
def test_yolo(text: str, settings: str | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("yolo")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    (folder / "classes.txt").write_text("cell\n", encoding="utf-8")
    (folder / "a.txt").write_text(text, encoding="utf-8")
    if settings is not None:
        (folder / "data.yaml").write_text(settings, encoding="utf-8")
    assert_sound(folder)


texts = st.one_of(
    st.sampled_from(
        [
            "<image>Find a",
            "<image>",
            '[{"bbox_2d": [1, 2, 30, 20], "label": "a"}]',
            "<ref-object><bbox>",
            "[1, 2, 3, 4]",
            "[]",
        ]
    ),
    junk,
)
parts = st.lists(
    st.one_of(junk, st.fixed_dictionaries({}, optional={"text": texts, "image_url": junk})), max_size=3
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "tool"]),
            "from": st.sampled_from(["human", "gpt"]),
            "content": st.one_of(texts, parts),
            "value": texts,
        },
    ),
    max_size=4,
)
conversations = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.one_of(messages, junk),
        "conversations": messages,
        "instruction": texts,
        "output": texts,
        "history": st.one_of(junk, st.lists(st.tuples(texts, texts), max_size=2)),
        "images": st.one_of(st.just(["a.png"]), junk, st.just([{"path": "a.png"}, {"bytes": None}])),
        "image": st.one_of(st.just("a.png"), junk),
        "objects": st.one_of(
            junk,
            st.fixed_dictionaries({"bbox": st.one_of(junk, st.lists(boxes, max_size=2)), "ref": junk}),
        ),
    },
)


@given(
    st.lists(conversations, min_size=1, max_size=3),
    st.sampled_from([None, "pixels", "thousandths", "resized"]),
)
def test_conversations__any_values_give_sound_records_or_data_errors(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], frame: BoxFrame | None
) -> None:
    folder = tmp_path_factory.mktemp("conversations")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    sound = {"messages": [{"role": "user", "content": "x"}]}
    (folder / "train.json").write_text(json.dumps([sound, *records]), encoding="utf-8")
    assert_sound(folder, frame)
