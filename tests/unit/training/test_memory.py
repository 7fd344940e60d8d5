"""The estimate of a training step's memory against what torch allocates, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig

from benchmarks.memory import make_config as benchmark_config
from benchmarks.memory import measure
from benchmarks.random_model import write_model
from qwendet.checks.config.memory import run_memory_check
from qwendet.config.load import build_config
from qwendet.config.schema import Config
from qwendet.demo.shapes import DEMO
from qwendet.loader import load
from qwendet.loading.weights import base_config
from qwendet.training.memory import GIB, Workload, estimate_memory, largest_workload


def make_config(**sections: dict[str, Any]) -> Config:
    values: dict[str, dict[str, Any]] = {
        "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
        "data": {"labels": list(DEMO.labels)},
        "train": {"learning_rate": 1e-3, "batch_size": 8},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return build_config(values, "test")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"vision_learning_rate": 0.0}},
        {"model": {"gradient_checkpointing": True}},
        {"model": {"lora": {"rank": 8}, "gradient_checkpointing": True}, "detection": {"enabled": False}},
        {"train": {"gradient_accumulation_steps": 2}, "data": {"teacher_ratio": 1.0}},
        {"train": {"autocast": "bf16"}},
        {"train": {"ema": {}}},
        {"model": {"dtype": "bfloat16"}, "train": {"vision_learning_rate": 0.0}},
        {"train": {"optimizer": "adafactor"}, "model": {"gradient_checkpointing": True}},
    ],
    ids=str,
)
def test_estimate__is_within_15_percent_of_what_torch_allocates(
    sections: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    labels = {"labels": list(DEMO.labels)}
    data = {"train": str(tmp_path / "train.jsonl"), **labels, **sections.get("data", {})}
    estimate, measured = measure(benchmark_config(tmp_path, "tiny", 8, **sections | {"data": data}))
    assert estimate == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_estimate__is_within_15_percent_with_the_true_vocabulary(shared: Path, tmp_path: Path) -> None:
    """There, what is as large as lm_head decides: its gradient, the scaled copy, the embeddings' own."""
    estimate, measured = measure(benchmark_config(tmp_path, str(write_model(tmp_path / "mini")), 2))
    assert estimate == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_check__7b_on_24_gib_is_refused_before_a_download_with_what_would_fit(shared: Path) -> None:
    folder = shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct"
    config = make_config(
        model={"path": str(folder), "dtype": "bfloat16"},
        data={"max_pixels": 1280 * 28 * 28},
        train={"batch_size": 1, "max_memory": 24.0},
    )
    (result,) = run_memory_check(config)
    assert (result.id, result.status) == ("config.memory", "fail")
    assert "but 24.0 GiB are there" in result.what
    assert result.fix.startswith("model.gradient_checkpointing=true, ")
    assert "model.lora={'rank': 16" in result.fix


def test_estimate__weights_and_optimizer_of_7b_are_those_of_its_parameters(shared: Path) -> None:
    settings = shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct" / "config.json"
    vlm_config = Qwen2_5_VLConfig.from_json_file(settings)
    config = make_config(detection={"enabled": False}, data={"train": None})
    work = Workload(1, 64, (8, 8), 64, 8)
    estimate = estimate_memory(config, vlm_config, torch.bfloat16, work, "cuda")
    assert estimate.weights == pytest.approx(
        8.29e9 * 4, rel=0.01
    )  # the published index: 16.58 GB of bfloat16
    assert estimate.optimizer == 2 * estimate.weights
    in_bfloat16 = {"weights": "bfloat16", "optimizer": "stable_adamw"}
    narrow = make_config(detection={"enabled": False}, train=in_bfloat16, model={"dtype": "bfloat16"})
    estimate = estimate_memory(narrow, vlm_config, torch.bfloat16, work, "cuda")
    assert estimate.weights == pytest.approx(8.29e9 * 2, rel=0.01)
    assert estimate.optimizer == 3 * estimate.weights
    adapter = make_config(detection={"enabled": False}, model={"dtype": "bfloat16", "lora": {"rank": 16}})
    frozen = estimate_memory(adapter, vlm_config, torch.bfloat16, work, "cuda")
    assert frozen.weights == pytest.approx(8.29e9 * 2, rel=0.02)


def test_estimate__fsdp_spreads_all_and_gathers_what_is_computed_with(shared: Path) -> None:
    """Whole is what is in no layer, two layers of the largest kind, and the gradients of both."""
    folder = shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct"
    vlm_config = Qwen2_5_VLConfig.from_pretrained(folder)
    config, work = make_config(detection={"enabled": False}), Workload(1, 64, (8, 8), 64, 8)
    one, eight = (
        estimate_memory(config, vlm_config, torch.bfloat16, work, "cuda", shards) for shards in (1, 8)
    )
    assert eight.weights == pytest.approx(one.weights / 8, rel=1e-6)
    assert eight.optimizer == pytest.approx(one.optimizer / 8, rel=1e-6)
    assert eight.gradients == pytest.approx(one.gradients / 8, rel=1e-6)
    assert eight.moments["step"] == pytest.approx(one.moments["step"] / 8, rel=1e-6)
    text, vision = vlm_config.text_config, vlm_config.vision_config
    size, keys = text.hidden_size, text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    layer = 2 * size**2 + size + 2 * (size + 1) * keys + 3 * size * text.intermediate_size + 2 * size
    merged = 4 * vision.hidden_size
    merger = merged * (merged + 1) + (merged + 1) * size + vision.hidden_size
    outside = 2 * text.vocab_size * size + merger + 3 * 2 * 14 * 14 * vision.hidden_size + size
    gathered = eight.moments["logits"] - one.moments["logits"]
    assert gathered == (outside + 2 * layer) * 4 * 2


@pytest.mark.slow
def test_check__7b_fits_where_fsdp_spreads_it(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared / "qwen_processor" / "Qwen2.5-VL-7B-Instruct"
    config = make_config(
        model={"path": str(folder), "dtype": "bfloat16", "gradient_checkpointing": True},
        data={"max_pixels": 640 * 28 * 28},
        train={"batch_size": 1, "max_memory": 60.0},
    )
    (alone,) = run_memory_check(config)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "8")
    (spread,) = run_memory_check(config)
    assert (alone.status, spread.status) == ("fail", "pass"), (alone.what, spread.what)
    assert "spread over 8 processes" in spread.what


def test_estimate__an_adapter_needs_no_optimizer_state_for_its_base() -> None:
    vlm_config = load(make_config(), for_inference=False).detector.vlm.config
    work = Workload(8, 64, (8, 8), 217, 124)
    whole, adapter = (
        estimate_memory(make_config(model={"lora": lora}), vlm_config, torch.float32, work, "cpu")
        for lora in (None, {"rank": 2})
    )
    assert adapter.weights > whole.weights
    assert adapter.optimizer < whole.optimizer
    assert adapter.gradients < whole.gradients


def test_estimate__a_frozen_model_keeps_no_activations() -> None:
    """With nothing but the head to train, autograd keeps the head's, however deep the model is."""
    vlm_config = load(make_config(), for_inference=False).detector.vlm.config
    work = Workload(8, 64, (8, 8), 217, 124)
    head_alone = make_config(train={"learning_rate": 0.0})
    kept = estimate_memory(head_alone, vlm_config, torch.float32, work, "cpu").activations
    assert kept < 0.7 * estimate_memory(make_config(), vlm_config, torch.float32, work, "cpu").activations
    vlm_config.text_config.num_hidden_layers += 1
    vlm_config.text_config.layer_types = None
    deeper = Qwen2_5_VLConfig.from_dict(vlm_config.to_dict())
    assert estimate_memory(head_alone, deeper, torch.float32, work, "cpu").activations == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen2.5-VL-7B-Instruct", "Qwen3-VL-4B-Instruct", "Qwen3.5-0.8B"])
def test_estimate__eager_attention_keeps_a_weight_for_each_pair_of_tokens(name: str, shared: Path) -> None:
    """Where layers are recurrent, as in Qwen3.5, the first one has none; the vision tower has."""
    vlm_config = base_config(str(shared / "qwen_processor" / name))
    kept = {
        (attention, tokens): estimate_memory(
            make_config(model={"attn_implementation": attention}, detection={"enabled": False}),
            vlm_config,
            torch.float32,
            Workload(2, patches, (64, patches // 64), tokens, 8),
            "cpu",
        ).activations
        for attention in ("sdpa", "eager")
        for patches, tokens in ((1024, 512), (2048, 1024))
    }
    assert kept["sdpa", 1024] == pytest.approx(2 * kept["sdpa", 512], rel=0.05)
    assert kept["eager", 1024] > 2.2 * kept["eager", 512]


@pytest.mark.slow
def test_estimate__layers_of_each_kind_count_as_what_they_are(shared: Path) -> None:
    """Three of four layers of Qwen3.5 are recurrent, and keep more than the fourth."""
    vlm_config = base_config(str(shared / "qwen_processor" / "Qwen3.5-0.8B"))
    text, work = vlm_config.text_config, Workload(1, 1024, (32, 32), 512, 8)
    published = text.layer_types
    kinds = {"mixed": published} | {kind: [kind] * len(published) for kind in {*published}}
    kept = {}
    for name, text.layer_types in kinds.items():
        config = make_config(detection={"enabled": False}, train={"vision_learning_rate": 0.0})
        kept[name] = estimate_memory(config, vlm_config, torch.float32, work, "cpu").activations
    recurrent, full = kept["linear_attention"], kept["full_attention"]
    assert recurrent > 1.2 * full
    assert kept["mixed"] == pytest.approx((3 * recurrent + full) / 4, rel=0.01)


@pytest.mark.slow
def test_check__the_tiny_model_fits_and_says_what_it_needs() -> None:
    (result,) = run_memory_check(make_config(model={"path": "tiny"}, train={"max_memory": 8.0}))
    assert result.status == "pass", result
    assert "a training step of the largest batch needs about" in result.what
    assert "8.0 GiB are there" in result.what
    (result,) = run_memory_check(make_config(model={"path": "tiny"}, train={"max_memory": 1e-3}))
    assert result.status == "fail"
    assert GIB == 1024**3


@pytest.mark.slow
def test_check__many_labels_need_more_and_fewer_a_request_less() -> None:
    """The head's activations grow with the labels of a batch, the prompt with those of a request."""
    peaks = []
    for count, most in ((16, None), (500, None), (500, 20)):
        data = {"labels": [f"label {number}" for number in range(count)], "labels_per_request": most}
        config = make_config(data=data)
        vlm_config = load(make_config(), for_inference=False).detector.vlm.config
        work = largest_workload(config, vlm_config, 64 * 28 * 28, count)
        peaks.append(
            (work.tokens, work.labels, estimate_memory(config, vlm_config, torch.float32, work, "cpu"))
        )
    assert [tokens for tokens, *_ in peaks] == [576, 576 + 484 * 5, 576 + 4 * 5]
    assert [labels for _, labels, _ in peaks] == [16, 500, 160]
    few, many, some = (estimate.peak for *_, estimate in peaks)
    assert few < some < many
    (result,) = run_memory_check(make_config(data={"labels": [f"label {n}" for n in range(500)]}))
    assert result.status == "pass"


@pytest.mark.slow
def test_check__a_model_that_cannot_be_reached_is_no_bug() -> None:
    (result,) = run_memory_check(make_config(model={"path": "nobody/nothing"}))
    assert (result.status, result.where) == ("fail", "nobody/nothing")
    assert result.what.startswith(
        "the model (no folder of this name is here, so it is taken for a hub id) cannot be"
    )
    assert result.fix.endswith("or a hub id that can be reached")
