"""The estimate of a training step's memory against what torch allocates, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import Qwen2_5_VLConfig

from qwendet.checks.config.memory import run_memory_check
from qwendet.config import Config
from qwendet.config_file import build_config
from qwendet.data.dataset import TrainingSamples
from qwendet.data.shapes import DEMO, write_dataset
from qwendet.loader import load
from qwendet.memory import GIB, Workload, estimate_memory
from qwendet.model.losses import LossManager, step_counts
from qwendet.model.matching import Targets
from qwendet.parameter_groups import freeze_groups, parameter_groups


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(DEMO, tmp_path_factory.mktemp("scenes") / "train.jsonl", 8, seed=1)


def make_config(**sections: dict[str, Any]) -> Config:
    values: dict[str, dict[str, Any]] = {
        "model": {"path": "tiny-untrained", "device": "cpu", "dtype": "float32"},
        "data": {"labels": list(DEMO.labels)},
        "train": {"learning_rate": 1e-3, "batch_size": 8},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return build_config(values, "test")


def measured(config: Config) -> tuple[int, Workload, Any]:
    """Peak bytes of the second of two steps, what it was given, and the model's config."""
    bundle = load(config, for_inference=False)
    config, detector = bundle.config, bundle.detector.train()
    freeze_groups(detector, config.train.group_learning_rates())
    samples = TrainingSamples(config, bundle.encoder())
    batch = bundle.collator()([samples[index] for index in range(8)])
    optimizer = torch.optim.AdamW(parameter_groups(detector, config.train.group_learning_rates(), 0.0))
    targets = Targets(batch["target_boxes_cxcywh"], batch["target_label_ids"], batch["num_boxes"])
    tracker = MemTracker()
    tracker.track_external(detector, optimizer)
    with tracker:
        for step in range(2):
            output = detector(batch)
            losses = LossManager(config.loss, config.detection.one_to_many)(
                output.tokens, output.head, targets, step_counts([batch])
            )
            losses.total.backward()
            del output, losses
            optimizer.step()
            optimizer.zero_grad()
            if step == 0:
                tracker.reset_mod_stats()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    patches = int(batch["image_grid_thw"].prod(1).sum())
    count, length = batch["input_ids"].shape
    rows, columns = batch["patch_mask"].shape[1:]
    supervised = int((batch["labels"] != -100).sum()) // count
    return (
        max(snapshot.values()),
        Workload(count, patches // count, (rows, columns), length, supervised),
        detector.vlm.config,
    )


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_estimate__is_within_15_percent_of_what_torch_allocates(recompute: bool, scenes: Path) -> None:
    config = make_config(model={"gradient_checkpointing": recompute}, data={"train": str(scenes)})
    peak, work, vlm_config = measured(config)
    estimate = estimate_memory(config, vlm_config, torch.float32, work)
    assert estimate.peak == pytest.approx(peak, rel=0.15)


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
    estimate = estimate_memory(config, vlm_config, torch.bfloat16, Workload(1, 64, (8, 8), 64, 8))
    assert estimate.weights == pytest.approx(8.29e9 * 2, rel=0.01)  # the published index: 16.58 GB
    assert estimate.optimizer == 2 * estimate.weights


def test_estimate__an_adapter_needs_no_optimizer_state_for_its_base() -> None:
    vlm_config = load(make_config(), for_inference=False).detector.vlm.config
    work = Workload(8, 64, (8, 8), 217, 124)
    whole, adapter = (
        estimate_memory(make_config(model={"lora": lora}), vlm_config, torch.float32, work)
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
    kept = estimate_memory(head_alone, vlm_config, torch.float32, work).activations
    assert kept < 0.7 * estimate_memory(make_config(), vlm_config, torch.float32, work).activations
    vlm_config.text_config.num_hidden_layers += 1
    vlm_config.text_config.layer_types = None
    deeper = Qwen2_5_VLConfig.from_dict(vlm_config.to_dict())
    assert estimate_memory(head_alone, deeper, torch.float32, work).activations == kept


def test_check__the_tiny_model_fits_and_says_what_it_needs() -> None:
    (result,) = run_memory_check(make_config(model={"path": "tiny"}, train={"max_memory": 8.0}))
    assert result.status == "pass", result
    assert "a training step of the largest batch needs about" in result.what
    assert "8.0 GiB are there" in result.what
    (result,) = run_memory_check(make_config(model={"path": "tiny"}, train={"max_memory": 1e-3}))
    assert result.status == "fail"
    assert GIB == 1024**3
