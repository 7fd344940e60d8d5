"""Tensors copied from files into a model's; those spread over processes are in test_fsdp.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qwendet.errors import CheckpointError, EnvironmentLacksError
from qwendet.loader import Bundle
from qwendet.model.spread import fill


@pytest.fixture
def two_files(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.full((3,), 2.0)}, tmp_path / "model-2.safetensors")
    return tmp_path


def test_fill__copies_every_tensor_into_the_one_that_is_there(two_files: Path) -> None:
    own: dict[str, Tensor] = {"a": nn.Parameter(torch.zeros(2)), "b": torch.zeros(3, dtype=torch.bfloat16)}
    places = {name: tensor.data_ptr() for name, tensor in own.items()}
    fill(own, two_files, "model-*.safetensors", "model")
    assert own["a"].tolist() == [1, 1]
    assert own["b"].tolist() == [2, 2, 2]
    assert own["b"].dtype == torch.bfloat16
    assert places == {name: tensor.data_ptr() for name, tensor in own.items()}


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"a": 2, "b": 3, "c": 1}, "the model's weight c is missing"),
        ({"a": 2}, "the model's weight b is unexpected"),
        ({"a": 2, "b": 4}, r"the model's weight b has shape \(3,\), expected \(4,\)"),
    ],
)
def test_fill__names_what_does_not_fit(two_files: Path, sizes: dict[str, int], what: str) -> None:
    own = {name: torch.zeros(size) for name, size in sizes.items()}
    with pytest.raises(CheckpointError, match=what):
        fill(own, two_files, "model-*.safetensors", "model")


def test_fill__names_a_file_that_cannot_be_read(two_files: Path) -> None:
    (two_files / "model-1.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="the model cannot be loaded"):
        fill({"a": torch.zeros(2)}, two_files, "model-*.safetensors", "model")


def test_require_ties__refuses_two_weights_that_are_one_in_the_config(bundle: Bundle) -> None:
    detector = bundle.detector
    detector.require_ties()
    tied = detector.vlm.lm_head.weight
    detector.vlm.lm_head.weight = nn.Parameter(tied.detach().clone())
    try:
        with pytest.raises(EnvironmentLacksError, match="one weight of this model, but became two"):
            detector.require_ties()
        detector.tie_weights()
        detector.require_ties()
    finally:
        detector.vlm.lm_head.weight = tied
