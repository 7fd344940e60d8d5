"""Large JSON, element by element: any window, any order, every break named with its place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwendet.data.formats import json_stream
from qwendet.data.formats.json_stream import stream_lists
from qwendet.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def lists_of(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for key, index, element, start, end in stream_lists(path):
        if index >= 0:
            assert index == len(found.setdefault(key, []))
            assert repr(json.loads(path.read_bytes()[start:end])) == repr(element)
            found[key].append(element)
    return found


@given(
    content=st.dictionaries(st.text(), values, max_size=4),
    window=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 3]),
)
def test_stream__as_json_loads(
    content: dict[str, Any], window: int, indent: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", window)
        found = lists_of(path)
    assert found == {key: value for key, value in content.items() if isinstance(value, list) and value}


def test_stream__nan_is_a_value(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"é": 0,\r\n"a": [NaN,\r\n1]}', encoding="utf-8", newline="")
    (first, second) = lists_of(path)["a"]
    assert math.isnan(first)
    assert second == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": character 1: the file ends too early"),
        ("[1]", ": character 1: expected a JSON object, got '['"),
        ('{"a": [1, 2', ": after a[1]: character 12: the file ends too early"),
        ('{"a": [1 2]}', ": after a[0]: character 10: expected ',' or ']', got '2'"),
        ('{"a": [{"b": x}]}', ": a[0]: character 14: expected JSON (Expecting value)"),
        ('{"a": [{"b": 1', ": a[0]: character 15: the file ends too early"),
        ('{"a" [1]}', ": character 6: expected a colon after 'a', got '['"),
        ("{1: 2}", ": character 3: expected a key, got 1"),
        ('{"a": 1} x', ": character 10: expected the end of the file"),
        ('{"a": [' + "[" * 100_000, ": a[0]: "),
        ('{"a": [' + "9" * 5_000 + "]}", ": a[0]: character 8: expected JSON (Exceeds the limit"),
    ],
)
def test_stream__broken(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        lists_of(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_stream__not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": ["\xff"]}')
    with pytest.raises(DataError, match="the file is not UTF-8"):
        lists_of(path)
    with pytest.raises(DataError, match=r"it cannot be read \(Is a directory\)"):
        lists_of(tmp_path)


def test_stream__an_endless_element_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": ["' + "x" * 10_000, encoding="utf-8")
    monkeypatch.setattr(json_stream, "WINDOW", 10)
    monkeypatch.setattr(json_stream, "MAX_VALUE", 100)
    with pytest.raises(DataError, match="Unterminated string"):
        lists_of(path)
