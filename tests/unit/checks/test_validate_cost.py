"""What the whole of ``validate`` costs on a large model: loads, forwards and backwards, counted."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from qwendet.checks import subject as subject_module
from qwendet.checks.config.scan import Thoroughness
from qwendet.checks.preflight import run_all_checks
from qwendet.config.load import load_config
from qwendet.config.schema import Config
from qwendet.demo.tiny import TINY_FOLDER

SAMPLES = 4


@dataclass
class Count:
    """What was done with the weights of one folder.

    Attributes:
        loads: times that they were read.
        saves: times that they were written.
        forwards: rows and tokens of each pass through the language model that has them.
        backwards: rows of each backward pass.
    """

    loads: int = 0
    saves: int = 0
    forwards: list[tuple[int, int]] = field(default_factory=list)
    backwards: list[int] = field(default_factory=list)


@pytest.fixture
def large(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The tiny model in a folder of its own, taken for a large one."""
    folder = Path(shutil.copytree(TINY_FOLDER, tmp_path / "model"))
    monkeypatch.setattr(subject_module, "SMALL", 0)
    settings = [f"model.path={folder}", "model.device=cpu", "data.max_pixels=6272", "data.min_pixels=3136"]
    settings.append("data.allow=[config.images.small_objects]")
    return load_config(repo_root / "examples" / "tiny.yaml", settings)


@pytest.fixture
def count(large: Config, monkeypatch: pytest.MonkeyPatch) -> Count:
    found, owned = Count(), set()
    sound_load = Qwen2_5_VLForConditionalGeneration.from_pretrained.__func__  # type: ignore[attr-defined]
    sound_save = Qwen2_5_VLForConditionalGeneration.save_pretrained

    def load(cls: Any, source: Any, **how: Any) -> Any:
        vlm, report = sound_load(cls, source, **how)
        is_copy = how.get("state_dict") is not None
        found.loads += source == large.model.path
        if is_copy or source == large.model.path:  # that of a few layers is another
            owned.add(vlm.model.language_model)
        return vlm, report

    def save(self: Any, *args: Any, **how: Any) -> None:
        found.saves += self.model.language_model in owned
        sound_save(self, *args, **how)

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module not in owned or not len(module.layers):  # type: ignore[arg-type]
            return  # some checks take the layers away: that costs nothing
        states = output.last_hidden_state
        found.forwards.append(tuple(states.shape[:2]))
        if states.requires_grad and states.grad_fn is not None:
            states.register_hook(lambda _: found.backwards.append(len(states)))

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", classmethod(load))
    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "save_pretrained", save)
    sound_forward = Qwen2_5_VLTextModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = sound_forward(self, *args, **kwargs)
        note(self, args, kwargs, output)
        return output

    monkeypatch.setattr(Qwen2_5_VLTextModel, "forward", forward)
    return found


def test_large_model__is_loaded_once_and_run_four_times(large: Config, count: Count) -> None:
    how = Thoroughness(tokens=True, workers=1)
    results, _ = run_all_checks(large, how, with_overfit=False)
    assert [result for result in results if result.status == "fail"] == []
    assert (count.loads, count.saves) == (1, 0)
    # the batch, a sample through the transformers class, one with its graph, the prompts at inference
    assert [rows for rows, _ in count.forwards] == [SAMPLES, 1, 1, SAMPLES]
    assert sum(count.backwards) <= 2 * SAMPLES
    assert torch.is_grad_enabled()
