"""A few layers of a large model: which ones, in which type, on which device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from qwendet.checks import shortened as shortened_module
from qwendet.checks import subject as subject_module
from qwendet.checks.consistency import noise as noise_module
from qwendet.checks.consistency.noise import compare
from qwendet.checks.preflight import run_consistency_checks
from qwendet.checks.runner import NotApplicableError
from qwendet.checks.shortened import exact, first_of_each, shortened
from qwendet.checks.subject import Subject, temporary_subject
from qwendet.config.load import load_config

OF_NUMBERS = ["consistency.compute.served", "consistency.compute.attention"]


@pytest.fixture
def large(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """The tiny model in bfloat16, taken for a large one whose fourth vision block alone sees whole images."""
    monkeypatch.setattr(subject_module, "SMALL", 0)
    settings = ["model.device=cpu", "model.dtype=bfloat16", "data.max_pixels=6272", "data.min_pixels=3136"]
    settings.append("train.vision_learning_rate=0.0")  # else all of it would be trained, in float32
    with temporary_subject(load_config(repo_root / "examples" / "tiny.yaml", settings)) as subject:
        visual: Any = subject.bundle.detector.vlm.model.visual
        visual.fullatt_block_indexes = [3]
        yield subject


def test_first_of_each__fewer_layers_than_asked_for() -> None:
    assert first_of_each(["full"], least=2) == [0]
    assert first_of_each(["linear", "linear", "linear", "full"], least=2) == [0, 3]


def test_shortened__keeps_a_block_of_each_kind_and_two_layers(large: Subject) -> None:
    whole: Any = large.bundle.detector
    copied: Any = shortened(whole)
    visual, text = copied.vlm.model.visual, copied.vlm.model.language_model
    assert (len(visual.blocks), visual.fullatt_block_indexes) == (2, [1])
    assert torch.equal(
        visual.blocks[1].mlp.up_proj.weight, whole.vlm.model.visual.blocks[3].mlp.up_proj.weight
    )
    assert [layer.self_attn.layer_idx for layer in text.layers] == [0, 1]
    assert (copied.config.vision_config.depth, copied.config.text_config.num_hidden_layers) == (2, 2)
    assert copied.config.text_config.layer_types == ["full_attention"] * 2
    assert copied.vlm.lm_head.weight is copied.vlm.get_input_embeddings().weight  # tied, as before
    assert (len(whole.vlm.model.visual.blocks), len(whole.vlm.model.language_model.layers)) == (4, 4)
    assert whole.config.text_config.num_hidden_layers == 4


def test_exact__is_float32_without_autocast_and_leaves_the_model_alone(large: Subject) -> None:
    before = {name: tensor.clone() for name, tensor in large.bundle.detector.state_dict().items()}
    few = exact(large)
    assert {parameter.dtype for parameter in few.bundle.detector.parameters()} == {torch.float32}
    config = few.bundle.config
    assert (config.model.dtype, config.train.autocast) == ("float32", "none")
    results, _ = run_consistency_checks(large, only=OF_NUMBERS)
    assert {result.status for result in results} == {"pass"}
    after = large.bundle.detector.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {tensor.dtype for name, tensor in after.items() if ".visual.blocks." in name} == {torch.bfloat16}


def test_exact__takes_a_model_of_two_types(large: Subject) -> None:
    """Trained parts in float32, frozen ones in bfloat16."""
    large.bundle.detector.vlm.model.language_model.float()
    few = exact(large)
    assert {parameter.dtype for parameter in few.bundle.detector.parameters()} == {torch.float32}


def test_exact__is_the_subject_itself_where_it_is_small_and_keeps_none(repo_root: Path) -> None:
    config = load_config(repo_root / "examples" / "tiny.yaml", ["model.device=cpu"])
    with temporary_subject(config) as subject:
        assert exact(subject) is subject
    gone = weakref.ref(subject)
    del subject
    gc.collect()
    assert gone() is None


def test_exact__goes_with_its_subject(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_module, "SMALL", 0)
    config = load_config(repo_root / "examples" / "tiny.yaml", ["model.device=cpu"])
    with temporary_subject(config) as subject:
        run_consistency_checks(subject, only=["consistency.compute.served"])
        gone = [weakref.ref(subject), weakref.ref(exact(subject))]
    del subject
    gc.collect()
    assert [found() for found in gone] == [None, None]


@pytest.mark.parametrize(("free", "expected"), [(80, "cuda"), (5, "cpu")])
def test_device__is_the_gpu_where_it_has_room(
    free: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU stood in for: two layers of a 3 B model, 0.5 B parameters, take 14 GiB."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
    parameter = SimpleNamespace(device=torch.device("cuda", 0), numel=lambda: 500_000_000)
    detector: Any = SimpleNamespace(parameters=lambda: iter([parameter]))
    assert shortened_module._device(detector).type == expected


def test_dequantise__makes_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer in 4 bits stood in for: bitsandbytes has none without a GPU."""
    from peft.utils import integrations

    model: Any = nn.Sequential(nn.Linear(3, 2))
    model.config = SimpleNamespace(quantization_config={})
    model[0].weight.quant_state = object()
    monkeypatch.setattr(integrations, "dequantize_module_weight", lambda module: torch.ones(2, 3))
    shortened_module._dequantise(model)
    assert torch.equal(model[0].weight, torch.ones(2, 3))
    assert model(torch.ones(1, 3)).shape == (1, 2)
    assert not vars(model.config)


@pytest.mark.parametrize(("tolerance", "is_skipped"), [(0.049, False), (0.051, True)])
def test_compare__a_tolerance_above_5_percent_is_a_skip(tolerance: float, is_skipped: bool) -> None:
    expected = torch.tensor([0.5, -1.0])
    if not is_skipped:
        (problem,) = compare(-expected, expected, tolerance, "states", "a.jpg", "")
        assert problem.what == "states differ by 2, tolerance 0.049"
        return
    with pytest.raises(
        NotApplicableError, match="states cannot be compared: rounding alone may move them by 5%"
    ):
        compare(-expected, expected, tolerance, "states", "a.jpg", "")


def test_noise_that_hides_bugs__is_a_skip_and_no_pass(
    large: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise_module, "MULTIPLE", 1e7)
    results, _ = run_consistency_checks(large, only=OF_NUMBERS)
    assert [result.status for result in results] == ["skip", "skip"]
    assert all("cannot be compared: rounding alone may move them by" in result.what for result in results)
