"""What only a GPU can show: bfloat16 training, and attention implementations that agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from qwendet.config.load import build_config
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import DEMO, write_dataset
from qwendet.encoding.collate import to_device
from qwendet.inference.predictor import Predictor
from qwendet.loader import load
from qwendet.train import train

pytestmark = pytest.mark.gpu


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return write_dataset(DEMO, tmp_path / "train.jsonl", 8, seed=1)


def settings(samples: Path, **model: str) -> dict[str, Any]:
    return {
        "model": {"path": "tiny", **model},
        "data": {"train": str(samples), "val": str(samples), "teacher_ratio": 0.5},
        "train": {"output_dir": str(samples.parent / "run"), "max_steps": 3, "batch_size": 4},
    }


def test_bfloat16_training__is_finite_and_served_as_trained(samples: Path) -> None:
    summary = train(build_config(settings(samples), "test"))
    assert summary.final is not None
    predictor = Predictor.from_checkpoint(summary.final)
    assert predictor.bundle.config.model.dtype == "bfloat16"
    lines = [prediction.to_json() for prediction in predictor.predict(SampleFile(samples))]
    written = (summary.output_dir / "eval" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == written


def head_logits(samples: Path, **model: str) -> torch.Tensor:
    config = build_config(settings(samples, **model), "test")
    bundle = load(config, for_inference=True)
    encoder = bundle.encoder()
    batch = bundle.collator()([encoder.encode(sample, with_answer=True) for sample in SampleFile(samples)])
    with torch.inference_mode():
        output = bundle.detector(to_device(batch, bundle.detector.device))
    return output.head.final()[0].float().cpu()


def test_sdpa_on_the_gpu__equals_the_cpu(samples: Path) -> None:
    on_gpu = head_logits(samples, dtype="float32", attn_implementation="sdpa", device="cuda")
    on_cpu = head_logits(samples, dtype="float32", attn_implementation="sdpa", device="cpu")
    torch.testing.assert_close(on_gpu, on_cpu, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn")
def test_flash_attention__agrees_with_sdpa_as_far_as_bfloat16_goes(samples: Path) -> None:
    flash = head_logits(samples, dtype="bfloat16", attn_implementation="flash_attention_2")
    sdpa = head_logits(samples, dtype="bfloat16", attn_implementation="sdpa")
    exact = head_logits(samples, dtype="float32", attn_implementation="sdpa")
    noise = (sdpa - exact).abs().mean()
    assert (flash - exact).abs().mean() <= 2 * noise
