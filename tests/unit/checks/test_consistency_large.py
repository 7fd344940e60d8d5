"""A model too large to copy is run a few times, and its checks still find what they are for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwendet.checks import subject as subject_module
from qwendet.checks.consistency.pair import pair
from qwendet.checks.preflight import run_consistency_checks
from qwendet.checks.subject import Subject, temporary_subject
from qwendet.config.load import load_config
from qwendet.errors import Result
from qwendet.model.detector import Qwen25VLWithDetection


@pytest.fixture
def large(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """The tiny model, taken for a large one."""
    monkeypatch.setattr(subject_module, "SMALL", 0)
    settings = ["model.device=cpu", "data.max_pixels=6272", "data.min_pixels=3136"]
    with temporary_subject(load_config(repo_root / "examples" / "tiny.yaml", settings)) as subject:
        yield subject


def failures(results: list[Result]) -> list[Result]:
    return [result for result in results if result.status == "fail"]


def test_large_model__is_run_once(large: Subject) -> None:
    own: list[Any] = [
        bundle.detector.vlm.model.language_model for bundle in (large.bundle, pair(large).served)
    ]
    lengths: list[int] = []

    def count(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        is_whole = module in own and len(module.layers) == 4  # a copy has two, some checks take them away
        lengths.extend([kwargs["inputs_embeds"].shape[1]] * is_whole)

    for part in own:
        part.register_forward_hook(count, with_kwargs=True)
    results, _ = run_consistency_checks(large)
    assert failures(results) == []
    assert len(lengths) == 1  # the prompts, by the inference build


def test_large_model__overflow_is_found(large: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Qwen25VLWithDetection.run_language_model

    def read(self: Qwen25VLWithDetection, *inputs: Any) -> Any:
        return sound(self, *inputs) * (1.0 if self.training else float("inf"))

    monkeypatch.setattr(Qwen25VLWithDetection, "run_language_model", read)
    results, _ = run_consistency_checks(large, only=["consistency.compute.served"])
    (first, *_) = failures(results)
    assert first.what == "class logits of the inference build are not finite"


@pytest.mark.parametrize("setting", ["model.lora.rank=4", "train.packing=true"])
def test_large_model__adapters_and_packed_samples_pass(
    setting: str, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter's base comes from memory, without it; a packed step is no batch of padded rows."""
    monkeypatch.setattr(subject_module, "SMALL", 0)
    config = load_config(repo_root / "examples" / "tiny.yaml", ["model.device=cpu", setting])
    with temporary_subject(config) as subject:
        results, _ = run_consistency_checks(subject)
    assert failures(results) == []
