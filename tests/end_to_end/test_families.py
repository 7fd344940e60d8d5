"""Published configurations with few, narrow layers: trained, evaluated, exported, loaded by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.worlds import PRETRAIN
from qwendet import Predictor
from qwendet.checks.preflight import run_consistency_checks
from qwendet.checks.subject import temporary_subject
from qwendet.config.load import build_config
from qwendet.config.schema import EMBEDDED_MODELS, Config
from qwendet.data.samples import SampleFile
from qwendet.demo.shapes import write_dataset
from qwendet.demo.tiny import SHIPPED
from qwendet.export.directory import export
from qwendet.loading.manifest import read_manifest
from qwendet.train import train
from tests.invariants.suite import broken
from tests.unit.families.test_families import PUBLISHED

QUICK = (
    "test.prompt.prefix", "test.prompt.labels", "test.prompt.template", "test.images.answers",
    "test.compute.positions", "test.compute.padding", "test.head.order",
)  # fmt: skip


def config_of(model: str, folder: Path) -> Config:
    """A small head on a model, and four scenes to train and evaluate on."""
    files = {
        split: str(write_dataset(PRETRAIN, folder / f"{split}.jsonl", 4, 1)) for split in ("train", "val")
    }
    return build_config(
        {
            "model": {"path": model, "device": "cpu"},
            "data": files
            | {
                "max_pixels": 65536,
                "allow": ["config.data.train_val_overlap", "config.images.small_objects"],
            },
            "detection": {"hidden_size": 32, "num_layers": 1, "num_queries": 10},
            "train": {"output_dir": str(folder / "run"), "max_steps": 3, "preflight": "off"},
            "infer": {"max_new_tokens": 4},
        },
        "test",
    )


@pytest.mark.parametrize("name", [name for name in EMBEDDED_MODELS if name not in SHIPPED])
def test_embedded__passes_the_quick_checks(name: str, tmp_path: Path) -> None:
    with temporary_subject(config_of(name, tmp_path)) as subject:
        (result,), _ = run_consistency_checks(subject, only=["consistency.prompt.text"])
        assert broken(subject, QUICK) == []
    assert result.status == "pass"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config__is_trained_evaluated_exported_and_loaded(
    name: str, small_model: Callable[[str], Path], tmp_path: Path
) -> None:
    config = config_of(str(small_model(name)), tmp_path)
    with temporary_subject(config) as subject:
        (result,), _ = run_consistency_checks(subject, only=["consistency.prompt.text"])
        assert broken(subject, QUICK) == []
    assert result.status == "pass"
    summary = train(config)
    assert summary.final is not None
    assert summary.metrics is not None
    assert "head/AP" in summary.metrics
    assert read_manifest(summary.final).config.data.system_prompt is not None
    sample = SampleFile(tmp_path / "val.jsonl")[0]
    predictor = Predictor.from_checkpoint(summary.final)
    (found,) = predictor.predict([sample], "both")
    assert found.answer is not None
    export(summary.final, tmp_path / "out")
    family = predictor.bundle.processor.family
    loaded, report = getattr(transformers, family.model_class).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    own = dict(predictor.bundle.detector.vlm.named_parameters())
    assert all(torch.equal(parameter, own[key]) for key, parameter in loaded.named_parameters())
