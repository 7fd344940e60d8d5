"""``make bench-check``: the counts of a step are those of the committed table, and a growth is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import counts
from qwendet.model import detector


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return counts.counted()


def table() -> dict[str, int]:
    read: dict[str, int] = json.loads(counts.TABLE.read_text(encoding="utf-8"))
    return read


def test_counts__have_not_grown(found: dict[str, int]) -> None:
    assert found.keys() == table().keys()
    assert counts.grown(found, table()) == []


def test_packing__has_fewer_tokens_for_the_same_rows(found: dict[str, int]) -> None:
    assert found["packed_sequence_tokens"] < found["padded_sequence_tokens"]
    assert found["packed_lm_head_rows"] == found["padded_lm_head_rows"] < found["packed_sequence_tokens"]


def test_all_positions_through_lm_head__are_noticed(
    found: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = detector.linear_cross_entropy

    def through_all(rows: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        torch.mm(rows.repeat(20, 1), weight.T)
        return right(rows, weight, labels)

    monkeypatch.setattr(detector, "linear_cross_entropy", through_all)
    worse = counts.count_step(counts.trainer_for(tmp_path, packing=False), "padded")
    assert any("largest_tensor_bytes" in problem for problem in counts.grown(worse, table()))
